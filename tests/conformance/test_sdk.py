"""The official SDK against a real server with the real model. KEEPWELL_URL and KEEPWELL_API_KEY say where."""

import json
import os

import openai
import pytest
from pydantic import BaseModel

MODEL = "smollm2"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def client(**options):
    options = {"api_key": os.environ["KEEPWELL_API_KEY"], "max_retries": 0, **options}
    return openai.OpenAI(base_url=os.environ["KEEPWELL_URL"] + "/v1", **options)


@pytest.fixture
def ai():
    return client()


def chat(ai, **fields):
    fields = {"model": MODEL, "messages": FRANCE, "temperature": 0, "max_tokens": 40, **fields}
    return ai.chat.completions.create(**fields)


def test_models_are_listed_and_retrieved(ai):
    (model,) = ai.models.list().data
    assert model.id == MODEL and model.max_model_len == 8192
    assert ai.models.retrieve(MODEL).id == MODEL


def test_a_chat_is_answered_and_accounted_for(ai):
    answer = chat(ai, extra_body={"kv_cache": {"budget": 0.5}})
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.usage.kv_cache["budget"] == 0.5


def test_a_stream_is_the_same_answer(ai):
    whole = chat(ai).choices[0].message.content
    chunks = list(chat(ai, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole
    assert [c.choices[0].finish_reason for c in chunks if c.choices].count("stop") == 1
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0


def test_choices_logprobs_and_stops(ai):
    answer = chat(ai, n=2, temperature=1.0, seed=1, logprobs=True, top_logprobs=3, max_tokens=5)
    assert [c.index for c in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)
    stopped = chat(ai, stop=["Paris"])
    assert "Paris" not in stopped.choices[0].message.content
    assert stopped.choices[0].finish_reason == "stop"
    cut = chat(ai, max_completion_tokens=2, max_tokens=openai.NOT_GIVEN)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2


def test_the_same_seed_gives_the_same_answer(ai):
    texts = {chat(ai, temperature=1.0, seed=7).choices[0].message.content for _ in range(2)}
    assert len(texts) == 1


class Person(BaseModel):
    name: str
    age: int


def test_an_answer_is_parsed_into_a_class(ai):
    messages = [{"role": "user", "content": "Ann is 30 years old. Who is she?"}]
    answer = ai.chat.completions.parse(
        model=MODEL, messages=messages, response_format=Person, temperature=0, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_a_json_object_is_one(ai):
    answer = chat(ai, response_format={"type": "json_object"}, max_tokens=300)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_tool_that_must_be_called_is_called(ai, choice):
    fields = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    answer = chat(ai, max_tokens=100, **fields).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    streamed = list(chat(ai, max_tokens=100, stream=True, **fields))
    pieces = [p for c in streamed for p in c.choices[0].delta.tool_calls or []]
    assert pieces[0].function.name == "get_weather" and pieces[0].id
    assert "".join(p.function.arguments for p in pieces) == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny"}
    messages = [*FRANCE, answer.message.model_dump(exclude_none=True), result]
    assert chat(ai, messages=messages, tools=[WEATHER]).choices[0].message is not None


def test_completions_echo_and_score(ai):
    prompt = "The capital of France is Paris"
    fields = {"model": MODEL, "prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 0}
    (choice,) = ai.completions.create(**fields).choices
    assert choice.text == prompt
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    answers = ai.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=3)
    assert [c.index for c in answers.choices] == [0, 1, 2, 3]


def test_what_was_generated_scores_as_it_was_drawn(ai):
    first = ai.completions.create(model=MODEL, prompt="Once upon", max_tokens=8, temperature=0, logprobs=0)
    drawn = first.choices[0].logprobs.token_logprobs
    whole = "Once upon" + first.choices[0].text
    scored = ai.completions.create(model=MODEL, prompt=whole, echo=True, logprobs=0, max_tokens=0)
    tail = scored.choices[0].logprobs.token_logprobs[-len(drawn):]
    assert all(abs(a - b) < 0.1 for a, b in zip(drawn, tail)), (drawn, tail)


def test_embeddings_of_alike_texts_are_alike(ai):
    texts = ["The cat sleeps on the sofa.", "A cat is sleeping on a couch.", "def f(x): return x + 1"]
    cat, same, code = (d.embedding for d in ai.embeddings.create(model=MODEL, input=texts).data)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert len(cat) == 576 and abs(dot(cat, cat) - 1) < 1e-3
    assert dot(cat, same) > dot(cat, code)
    short = ai.embeddings.create(model=MODEL, input="a", dimensions=8, encoding_format="float")
    assert len(short.data[0].embedding) == 8


def test_responses_go_on_from_each_other(ai):
    first = ai.responses.create(model=MODEL, input="My name is Ann.", temperature=0, max_output_tokens=20)
    assert first.output_text and first.usage.output_tokens > 0
    second = ai.responses.create(
        model=MODEL, input="What is my name?", previous_response_id=first.id, temperature=0,
        max_output_tokens=20,
    )
    assert second.usage.input_tokens > first.usage.input_tokens
    assert ai.responses.retrieve(second.id).output_text == second.output_text
    ai.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        ai.responses.retrieve(second.id)


def test_a_response_streams(ai):
    with ai.responses.stream(
        model=MODEL, input="What is the capital of France?", temperature=0
    ) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text and text


def test_errors_are_those_of_the_sdk(ai):
    with pytest.raises(openai.BadRequestError) as error:
        chat(ai, temperature=9)
    assert (error.value.param, error.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError) as error:
        chat(ai, model="gpt-4")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as error:
        chat(client(api_key="wrong"))
    assert error.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as error:
        chat(ai, messages=[{"role": "user", "content": "word " * 20_000}])
    assert error.value.code == "context_length_exceeded"
