"""A request's trace on the real engine: ours, the client's above it, and vLLM's below it."""

from tests.otlp_receiver import Receiver, attributes
from tests.real_engine.questions import LIGHTS, say
from tests.real_engine.running_server import RunningServer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_vllms_span_stands_below_ours_and_ours_below_the_clients(
    server: RunningServer, collector: Receiver
) -> None:
    server.client().chat.completions.create(
        model="smart-home",
        messages=say(LIGHTS),
        max_tokens=3,
        extra_headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
    )
    ours, theirs = "chat default/smart-home", "llm_request"
    spans = collector.trace(TRACE, ours, theirs, "loraplex.first_token", "loraplex.sent")
    assert spans[ours].parent_span_id.hex() == PARENT
    assert spans[theirs].parent_span_id == spans[ours].span_id
    values = attributes(spans[ours])
    assert values["gen_ai.usage.output_tokens"] == 3
    assert values["gen_ai.response.finish_reasons"] == ["length"]
    assert values["http.response.status_code"] == 200
    assert LIGHTS not in str(spans)
