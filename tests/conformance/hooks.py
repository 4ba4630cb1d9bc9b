"""What makes the fuzzer's requests reach the engine, and its answers short; and how many did."""

import atexit
import collections
import json
import os
import zlib

import schemathesis

MAX_TOKENS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
# What a document cannot say in full: a schema that can be followed, a name that is known, a number
# below another one.
HARD = (
    "previous_response_id", "logit_bias", "min_tokens", "guided_json", "guided_regex", "guided_grammar",
    "structured_outputs",
)
answers = collections.Counter()


def soften(body, path):
    """Keeps what is sound by itself, and drops what contradicts the rest."""
    for name in HARD:
        body.pop(name, None)
    field = MAX_TOKENS.get(path)
    if field and isinstance(body.get(field), int):
        body[field] = min(body[field], 4)
    if isinstance(body.get("n"), int):
        body["n"] = min(body["n"], 2)
    if not body.get("stream"):
        body.pop("stream_options", None)
    if body.get("top_logprobs") is not None:
        body["logprobs"] = True
    for holder, name in ((body, "response_format"), (body.get("text"), "format")):
        if isinstance(holder, dict) and isinstance(holder.get(name), dict):
            if holder[name].get("type") == "json_schema":
                del holder[name]
    if body.get("response_format") is not None:
        body.pop("guided_choice", None)
    if isinstance(body.get("tool_choice"), dict) or body.get("guided_choice") or not body.get("tools"):
        body.pop("tool_choice", None)
    if body.get("tool_choice") == "required":
        body["tool_choice"] = "auto"
    if isinstance(body.get("kv_cache"), dict):
        body["kv_cache"].pop("min_budget", None)


@schemathesis.hook
def before_call(context, case, kwargs):
    body, path = case.body, case.operation.path
    if not isinstance(body, dict):
        return
    field = MAX_TOKENS.get(path)
    if field and body.get(field) is None:
        body[field] = 4
    # Prompts as long as the document allows take minutes.
    for name in ("prompt", "input"):
        if isinstance(body.get(name), list):
            body[name] = [part[:16] if isinstance(part, list) else part for part in body[name][:16]]
    # One in four stays as it is.
    if zlib.crc32(json.dumps(body, default=str).encode()) % 4:
        soften(body, path)


@schemathesis.hook
def after_call(context, case, response):
    answers[case.operation.label, response.status_code // 100] += 1


@atexit.register
def tell():
    """For each operation, how many were asked and how many of them succeeded."""
    asked, succeeded = collections.Counter(), collections.Counter()
    for (label, status), num in answers.items():
        asked[label] += num
        succeeded[label] += num * (status == 2)
    if path := os.environ.get("CONFORMANCE_COUNTS"):
        with open(path, "w") as file:
            json.dump({label: [succeeded[label], asked[label]] for label in asked}, file)
