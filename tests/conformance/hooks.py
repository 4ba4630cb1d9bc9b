"""What schemathesis sends is valid and may be long: answers of a few tokens show as much."""

import schemathesis

MAX_TOKENS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}


@schemathesis.hook
def before_call(context, case, kwargs):
    field = MAX_TOKENS.get(case.operation.path)
    if field and isinstance(case.body, dict) and case.body.get(field) is None:
        case.body[field] = 4
