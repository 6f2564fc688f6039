"""The OpenAPI document is valid, complete, and says what the code does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
import schemathesis

from apportion.core import Cost, Option, State, catalogue
from apportion.core.outcome import Status
from apportion.measure.usage import Usage
from apportion.serve import call, errors, openapi
from apportion.serve.gateway import Gateway
from apportion.serve.http.server import Request
from apportion.serve.lessons import Lessons
from apportion.serve.records import Attempt, Record, explain

ROOT = Path(__file__).parents[2]
DOCUMENT = json.loads(openapi.document_bytes())
SCHEMAS = DOCUMENT["components"]["schemas"]
PREFIXED = {"/v1" + path: api for path, api in call.ROUTES.items()}


def validator(name: str) -> jsonschema.Draft202012Validator:
    """A validator of one of the document's schemas."""
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}
    )


def refs(value: Any) -> list[str]:
    """Every reference inside a JSON value."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for inner in value.values() for ref in refs(inner)]
    return [ref for inner in value for ref in refs(inner)] if isinstance(value, list) else []


def test_the_copy_in_the_documentation_is_up_to_date() -> None:
    kept = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert kept == DOCUMENT, "run: python -m apportion.serve.openapi > docs/openapi.json"


def test_every_operation_loads() -> None:
    loaded = list(schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
    for operation in loaded:
        operation.ok()
    assert len(loaded) == sum(len(item) for item in DOCUMENT["paths"].values())
    names = [op["operationId"] for item in DOCUMENT["paths"].values() for op in item.values()]
    assert len(names) == len(set(names))


def test_every_schema_is_a_schema_and_every_reference_leads_somewhere() -> None:
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    used = set(refs(DOCUMENT))
    for ref in used:
        found = DOCUMENT
        for part in ref.removeprefix("#/").split("/"):
            found = found[part]
    for kind in ("schemas", "headers", "parameters", "responses"):
        for name in DOCUMENT["components"][kind]:
            assert f"#/components/{kind}/{name}" in used, f"{kind}/{name} is not used"


async def test_every_route_is_there() -> None:
    gateway = Gateway.__new__(Gateway)
    Gateway.__init__(gateway, None, None, None, rng=random.Random(0))  # type: ignore[arg-type]
    gateway.teach_with(Lessons(0, teach=lambda verdict: None))
    found = {(method, path) for path, item in DOCUMENT["paths"].items() for method in item}
    routes = {(route.method.lower(), route.path.replace("...}", "}")) for route in gateway.routes.table}
    assert found == routes | {("post", path) for path in gateway._apis}


@pytest.mark.parametrize("path", PREFIXED)
def test_every_status_is_documented(path: str) -> None:
    found = DOCUMENT["paths"][path]["post"]["responses"]
    own = {cls.status for cls in openapi._call_errors()}
    assert {200, 400, 401, 402, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431, 500, 502, 503, 504} <= {
        int(status) for status in found if status.isdigit()
    }
    assert {str(status) for status in own} <= set(found)
    streams = "text/event-stream" in found["200"]["content"]
    assert streams == (PREFIXED[path] in call.STREAMED)


def test_every_error_has_its_code_in_the_description_of_its_status() -> None:
    for cls in openapi._call_errors():
        response = DOCUMENT["components"]["responses"][f"Call{cls.status}Openai"]
        assert f"`{cls.code}`" in response["description"]


@pytest.mark.parametrize("cls", [*openapi._call_errors(), errors.NotFoundError])
@pytest.mark.parametrize(("dialect", "schema"), [("openai", "OpenAIError"), ("anthropic", "AnthropicError")])
def test_rendered_errors_match(cls: type[errors.GatewayError], dialect: str, schema: str) -> None:
    for error in (cls("Wrong."), cls("Wrong.", field="f", fix="Mend it.", details={"best": None})):
        validator(schema).validate(json.loads(errors.render(error, dialect, "req_1")))


def test_an_explained_decision_matches() -> None:
    record = Record(
        id="dec_" + "0" * 18,
        request_id="req_" + "0" * 18,
        created_s=1.0,
        key="alice",
        key_tags={"team": "red"},
        api="chat",
        model="m",
        stream=False,
        constraints=call.Constraints(effort=0.5, priority=1, tags=["t"]),
        attempts=[],
        upstream_model=None,
        status="running",
        duration_s=None,
        overhead_s=None,
    )
    validator("Decision").validate(json.loads(msgspec.json.encode(explain(record))))
    policy = catalogue.build("route/priced")
    options = [Option("a", 0.01, Cost(usd=0.001)), Option("b", 0.02, Cost(tokens=3.0), load=0.5)]
    decision = policy.decide(State(0.0, options, prices={"usd": 1.0}))  # type: ignore[attr-defined]
    for status in get_args(Status):
        attempt = Attempt(
            decision=decision,
            endpoint="a",
            model="large",
            status=status,
            usage=Usage(input_tokens=1, output_tokens=2, estimated=True),
            units=7,
            server_s=0.1,
            started_s=1.0,
            ended_s=2.0,
            first_chunk_s=None,
            finish=None,
            failure="status 503",
            http_status=503,
            censored=False,
        )
        record.attempts.append(attempt)
        record.status, record.duration_s, record.overhead_s = status, 1.0, 0.2
        shown = json.loads(msgspec.json.encode(explain(record)))
        validator("Decision").validate(shown)
    described = SCHEMAS["Decision"]["properties"]
    assert set(shown) == set(described)
    assert set(shown["outcome"]) == set(described["outcome"]["properties"])
    attempted = described["attempts"]["items"]["properties"]
    assert set(shown["attempts"][0]) == set(attempted)
    assert set(shown["attempts"][0]["options"][0]) == set(attempted["options"]["items"]["properties"])


@pytest.mark.parametrize("api", call.ROUTES.values())
def test_examples_are_valid_and_read(api: call.Api) -> None:
    name, _ = openapi._REQUESTS[api]
    example = openapi._EXAMPLES[api]
    validator(name).validate(example)
    request = Request("POST", b"/", "1.1", {b"content-type": b"application/json"}, True)
    request.body = json.dumps(example).encode()
    assert call.parse(request, api).model == "default"


@pytest.mark.parametrize("api", call.ROUTES.values())
@pytest.mark.parametrize(
    "wrong",
    [
        {"apportion": {"max_usd": 0}},
        {"apportion": {"deadline_s": -1}},
        {"apportion": {"effort": 2}},
        {"apportion": {"max_eur": 1}},
        {"apportion": {"tags": "one"}},
        {"model": ""},
        {"model": None},
        {"stream": "yes"},
    ],
    ids=str,
)
def test_what_the_schema_refuses_is_refused(api: call.Api, wrong: dict[str, Any]) -> None:
    name, _ = openapi._REQUESTS[api]
    body = {**openapi._EXAMPLES[api], **wrong}
    assert list(validator(name).iter_errors(body))
    request = Request("POST", b"/", "1.1", {}, True)
    request.body = json.dumps(body).encode()
    with pytest.raises(errors.InvalidRequestError):
        call.parse(request, api)


def test_every_field_is_described() -> None:
    for cls in ("Constraints", *(name for name, _ in openapi._REQUESTS.values())):
        for field, schema in SCHEMAS[cls]["properties"].items():
            assert schema.get("description"), field
    used = {field for schema in openapi._components().values() for field in schema["properties"]}
    assert used == set(openapi.FIELDS)
