import pytest

from server.engine import cpu
from server.engine.arguments import engine_arguments, tool_call_parser
from server.settings import Settings, SettingsError


def test_settings_become_arguments() -> None:
    settings = Settings(max_loras=3, max_lora_rank=8, kv_cache_gib=1.5, dtype="bfloat16")
    arguments = engine_arguments(settings, "org/model")
    assert (arguments.model, arguments.served_model_name) == ("org/model", ["base"])
    assert (arguments.enable_lora, arguments.max_loras, arguments.max_cpu_loras > 10_000) == (
        True,
        3,
        True,
    )
    assert arguments.kv_cache_memory_bytes == int(1.5 * 2**30)
    assert arguments.max_model_len == -1, "the longest that the KV cache holds"
    assert arguments.long_prefill_token_threshold == 64
    assert engine_arguments(Settings(max_model_len=16), "m").long_prefill_token_threshold == 16
    assert arguments.lora_modules is None
    assert "q_proj" in arguments.lora_target_modules
    assert "lm_head" not in arguments.lora_target_modules


GIB = 1 << 30
SMALL_MACHINE = cpu.Machine((cpu.Processor(0, 0, 0),), 1, 4 * GIB)


def test_memory_decides_about_the_kv_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "read_machine", lambda: SMALL_MACHINE)
    assert engine_arguments(Settings(), "org/model").kv_cache_memory_bytes == GIB
    assert not caplog.records
    greedy = engine_arguments(Settings(kv_cache_gib=3), "org/model")
    assert greedy.kv_cache_memory_bytes == 3 * GIB
    assert "LORAPLEX_KV_CACHE_GIB" in caplog.text
    monkeypatch.setattr(cpu, "resident_bytes", lambda *_: 3 * GIB)
    with pytest.raises(SettingsError, match=r"LORAPLEX_BASE .* more memory"):
        engine_arguments(Settings(), "org/model")


def test_other_engine_arguments_pass_through() -> None:
    settings = Settings(engine_args=("--max-num-seqs", "7", "--max_num_batched_tokens=512"))
    arguments = engine_arguments(settings, "org/model")
    assert (arguments.max_num_seqs, arguments.max_num_batched_tokens) == (7, 512)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--max-num-seq", "7"), "did you mean --max-num-seqs"),
        (("--max-num-seqs", "many"), "invalid"),
        (("--model", "x"), "--base"),
        (("--api_key=x",), "loraplex keys"),
        (("--lora-modules", "a=b"), "adapters register"),
        (("stray",), "--base"),
    ],
)
def test_arguments_that_cannot_be_passed(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        engine_arguments(Settings(engine_args=given), "org/model")
    assert "\n" not in str(error.value)


def test_tool_call_format_follows_the_tokenizer(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert tool_call_parser(str(tmp_path)) == "hermes"
    (tmp_path / "tokenizer.json").write_text('{"content": "<|python_tag|>"}')
    assert tool_call_parser(str(tmp_path)) == "llama3_json"
