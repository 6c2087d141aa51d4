from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, load_settings


def test_defaults_are_those_of_the_contract() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.data_dir == Path("var")
    assert settings.served_base_name == "base"
    assert settings.records_url == "sqlite:///var/registry.db"
    assert settings.host_adapters >= 2 * settings.max_loras


def test_environment_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPLEX_PORT", "9000")
    monkeypatch.setenv("LORAPLEX_LOCAL_ROOTS", "/a:/b")
    monkeypatch.setenv("LORAPLEX_ENGINE_ARGS", "--max-num-seqs 8 --seed '1'")
    assert load_settings().port == 9000
    assert load_settings(port="9001").port == 9001
    assert load_settings().local_roots == (Path("/a"), Path("/b"))
    assert load_settings().engine_args == ("--max-num-seqs", "8", "--seed", "1")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LORAPLEX_PORT", "eighty"),
        ("LORAPLEX_PORT", "70000"),
        ("LORAPLEX_MAX_LORA_RANK", "12"),
        ("LORAPLEX_MAX_LORAS", "0"),
        ("LORAPLEX_DTYPE", "int3"),
        ("LORAPLEX_BASE", "/does/not/exist"),
        ("LORAPLEX_BASE", "nonsense"),
        ("LORAPLEX_DEMO", "perhaps"),
        ("LORAPLEX_ENGINE_ARGS", "--seed '1"),
        ("LORAPLEX_ORIGIN", "bucket/prefix"),
        ("LORAPLEX_DISK_BUDGET_GIB", "0"),
    ],
)
def test_bad_values_name_the_variable_and_the_flag(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    message = str(error.value)
    assert variable in message
    assert "--" + variable.removeprefix("LORAPLEX_").lower().replace("_", "-") in message
    assert "\n" not in message


def test_values_that_do_not_fit_together() -> None:
    with pytest.raises(SettingsError, match="LORAPLEX_MAX_CPU_LORAS"):
        load_settings(max_loras=8, max_cpu_loras=4)


def test_an_old_name_still_answers_and_a_line_says_the_new_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_settings(other_rounding="refuse").base_quantization_mismatch == "refuse"
    assert caplog.messages == ["--other-rounding is now called --base-quantization-mismatch"]
    caplog.clear()
    monkeypatch.setenv("LORAPLEX_OTHER_ROUNDING", "refuse")
    assert load_settings().base_quantization_mismatch == "refuse"
    assert caplog.messages == [
        "LORAPLEX_OTHER_ROUNDING is now called LORAPLEX_BASE_QUANTIZATION_MISMATCH"
    ]
    monkeypatch.setenv("LORAPLEX_BASE_QUANTIZATION_MISMATCH", "warn")
    assert load_settings().base_quantization_mismatch == "warn", "the new name wins"
    assert load_settings(base_quantization_mismatch="refuse").base_quantization_mismatch == "refuse"


def test_unknown_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPLEX_MAX_LORA", "4")
    with pytest.raises(SettingsError, match="did you mean LORAPLEX_MAX_LORAS"):
        load_settings()


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"config\.json"):
        load_settings(base=str(tmp_path))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LORAPLEX_SERVICE_HOST", "10.0.0.1"),
        ("LORAPLEX_PORT", "tcp://10.0.0.1:80"),
        ("LORAPLEX_SERVICE_PORT_HTTP", "80"),
        ("LORAPLEX_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("LORAPLEX_API_SERVICE_HOST", "10.0.0.1"),
    ],
)
def test_variables_that_kubernetes_makes_are_named_as_such(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match="enableServiceLinks: false"):
        load_settings()
