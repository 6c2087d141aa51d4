from argparse import Namespace

import pytest

from server.engine import arguments as engine_module
from server.engine import cpu
from server.engine.arguments import FORBIDDEN, engine_arguments
from server.engine.device.base_size import BaseSize
from server.engine.device.device import Device
from server.engine.worker.lora_gpu import OPERATOR_VERSION
from server.engine.worker.speculation import PROPOSER
from server.settings import Settings, SettingsError
from tests.server.engine.device.devices import CPU, H200, L40
from tests.vllm_next.snapshot import flags


def parsed(settings: Settings, base: str = "org/model", device: Device = CPU) -> Namespace:
    return engine_arguments(settings, base, device)


def test_settings_become_arguments() -> None:
    settings = Settings(max_loras=3, max_lora_rank=8, kv_cache_gib=1.5, dtype="bfloat16")
    arguments = parsed(settings)
    assert (arguments.model, arguments.served_model_name) == ("org/model", ["base"])
    assert (arguments.enable_lora, arguments.max_loras, arguments.max_cpu_loras > 10_000) == (
        True,
        3,
        True,
    )
    assert arguments.kv_cache_memory_bytes == int(1.5 * 2**30)
    assert arguments.max_model_len == -1, "the longest that the KV cache holds"
    assert arguments.long_prefill_token_threshold == 64
    assert parsed(Settings(max_model_len=16)).long_prefill_token_threshold == 16
    assert arguments.lora_modules is None
    assert "q_proj" in arguments.lora_target_modules
    assert "lm_head" not in arguments.lora_target_modules


def test_a_dedicated_server_computes_no_lora() -> None:
    assert not engine_arguments(Settings(), "org/model", CPU, has_adapters=False).enable_lora


GIB = 1 << 30
SMALL_MACHINE = cpu.Machine((cpu.Processor(0, 0, 0),), 1, 4 * GIB)


def test_memory_decides_about_the_kv_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "read_machine", lambda: SMALL_MACHINE)
    assert parsed(Settings()).kv_cache_memory_bytes == GIB
    assert not caplog.records
    greedy = parsed(Settings(kv_cache_gib=3))
    assert greedy.kv_cache_memory_bytes == 3 * GIB
    assert "LORAPLEX_KV_CACHE_GIB" in caplog.text
    large = BaseSize(3 * GIB, 1, 1, 1)
    monkeypatch.setattr(engine_module, "size_of", lambda _base: large)
    with pytest.raises(SettingsError, match=r"LORAPLEX_BASE .* more memory"):
        parsed(Settings())


def test_on_a_gpu_a_prompt_has_at_least_a_quarter_of_a_step() -> None:
    arguments = parsed(Settings(), device=H200)
    assert arguments.long_prefill_token_threshold == 2048
    assert arguments.long_prefill_token_threshold_adaptive
    assert arguments.kv_cache_memory_bytes is None
    set_by_hand = parsed(Settings(prefill_tokens=100), device=L40)
    assert set_by_hand.long_prefill_token_threshold == 100
    assert not set_by_hand.long_prefill_token_threshold_adaptive
    own_step = parsed(Settings(engine_args=("--max-num-batched-tokens", "16384")), device=L40)
    assert own_step.long_prefill_token_threshold == 4096


def test_on_cpu_a_step_is_short() -> None:
    """A readiness probe, and whoever asks beside a long prompt, waits for the step that runs."""
    assert parsed(Settings()).max_num_batched_tokens == 256
    assert parsed(Settings(), device=H200).max_num_batched_tokens is None
    assert parsed(Settings(prefill_tokens=500)).max_num_batched_tokens == 500
    many = Settings(engine_args=("--max-num-seqs", "300"))
    assert parsed(many).max_num_batched_tokens == 300, "vLLM wants a token for each sequence"


def test_other_engine_arguments_pass_through() -> None:
    settings = Settings(engine_args=("--max-num-seqs", "7", "--max_num_batched_tokens=512"))
    arguments = parsed(settings)
    assert (arguments.max_num_seqs, arguments.max_num_batched_tokens) == (7, 512)


def test_models_compiled_with_our_operators_have_a_key_of_their_own() -> None:
    """vLLM's cache of compiled models doesn't look at LoRA operators, but at this."""
    given = ("--additional-config", '{"theirs": 1}')
    fused = parsed(Settings(engine_args=given), device=H200).additional_config
    assert fused == {"theirs": 1, "loraplex_lora_operators": OPERATOR_VERSION}
    stock = Settings(engine_args=given, gpu_lora_kernels="stock")
    assert parsed(stock, device=H200).additional_config == {"theirs": 1}
    assert parsed(Settings(engine_args=given)).additional_config == {"theirs": 1}


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
        parsed(Settings(engine_args=given))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "argument", ["--enable-log-requests", "--allowed_local_media_path=/", "--enable-prompt-embeds"]
)
def test_arguments_that_let_clients_do_what_they_must_not(argument: str) -> None:
    with pytest.raises(SettingsError, match="is refused: "):
        parsed(Settings(engine_args=(argument,)))


def test_every_forbidden_argument_is_one_of_vllms() -> None:
    for name in FORBIDDEN:
        with pytest.raises(SettingsError, match=f"--{name} is refused"):
            parsed(Settings(engine_args=(f"--{name}",)))
    assert FORBIDDEN.keys() <= {name.lstrip("-") for name in flags()}


def test_guesses() -> None:
    arguments = parsed(Settings(speculation_tokens=3))
    config = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": 3}
    assert arguments.speculative_config == config
    assert arguments.max_num_batched_tokens == 4 * CPU.max_seqs, "vLLM wants room for all guesses"
    assert arguments.max_num_scheduled_tokens == 256, "steps of prompts are as short as without"
    few = parsed(Settings(speculation_tokens=3, engine_args=("--max-num-seqs", "4")))
    assert few.max_num_batched_tokens == few.max_num_scheduled_tokens == 256
    without = parsed(Settings())
    assert without.speculative_config is None
    assert without.max_num_scheduled_tokens is None


@pytest.mark.parametrize(
    "given",
    [
        ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}'),
        ("--spec-method", "ngram"),
    ],
)
def test_vllms_own_guesses_are_refused_on_cpu(given: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match=f"{given[0]} is refused on CPU.*SPECULATION_TOKENS"):
        parsed(Settings(engine_args=given))
    assert getattr(parsed(Settings(engine_args=given), device=H200), given[0][2:].replace("-", "_"))


@pytest.mark.parametrize(
    ("given", "device", "message"),
    [
        ((), H200, "works on CPU only"),
        (("--speculative-config", "{}"), CPU, "--speculative-config"),
        (("-sc", "{}"), CPU, "--speculative-config"),
        (("--logits-processors", "a:B"), CPU, "--logits-processors"),
        (("--logprobs_mode=raw_logits",), CPU, "--logprobs-mode"),
        (("--async-scheduling",), CPU, "--async-scheduling"),
    ],
)
def test_what_guesses_cannot_be_combined_with(
    given: tuple[str, ...], device: Device, message: str
) -> None:
    with pytest.raises(SettingsError, match=rf"LORAPLEX_SPECULATION_TOKENS .*{message}"):
        parsed(Settings(speculation_tokens=2, engine_args=given), device=device)
