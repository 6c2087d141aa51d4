"""The chart as Helm 3 and 4 render it: valid for Kubernetes, true to the server's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from server.settings import RENAMED, Settings, load_settings, variable_of
from tests.helm import generated
from tests.helm.conftest import Manifests
from tests.helm.programs import CHART, Helm, Refused

KUBERNETES = ("1.30", "1.33", "1.37")
SCHEMAS = {
    file.stem: json.loads(file.read_text())
    for file in (Path(__file__).parent / "schemas").glob("*.json")
}


def validate(manifest: dict[str, Any], version: str) -> None:
    """Fail on an unknown kind, an unknown field, or a value that isn't allowed."""
    if manifest["kind"] in SCHEMAS:
        jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


def only(manifests: Manifests, kind: str, name: str = "demo-loraplex") -> dict[str, Any]:
    found = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    assert len(found) == 1, (kind, name)
    return found[0]


def server_of(manifests: Manifests) -> dict[str, Any]:
    container: dict[str, Any] = only(manifests, "StatefulSet")["spec"]["template"]["spec"][
        "containers"
    ][0]
    return container


def job_of(manifests: Manifests) -> dict[str, Any]:
    pod: dict[str, Any] = only(manifests, "Job", "demo-loraplex-migration")["spec"]["template"][
        "spec"
    ]
    return pod


def values(**given: Any) -> list[str]:
    return [part for key, value in given.items() for part in ("--set-json", f"{key}={value}")]


def test_lint(helm: Helm, profile: Path) -> None:
    helm.run("lint --strict", str(CHART), "--values", str(profile))


def test_both_helms_render_the_same(helm: Helm, profile: Path, manifests: Manifests) -> None:
    def by_name(rendered: Manifests) -> dict[tuple[str, str], dict[str, Any]]:
        return {(m["kind"], m["metadata"]["name"]): m for m in rendered}

    assert by_name(helm.render("--values", str(profile))) == by_name(manifests)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_manifest(manifests: Manifests, version: str) -> None:
    for manifest in manifests:
        validate(manifest, version)


def test_a_wrong_manifest_is_found(manifests: Manifests) -> None:
    service = only(manifests, "Service")
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        validate(service | {"kind": "Servant"}, "1.37")
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(service | {"spec": service["spec"] | {"portz": []}}, "1.37")
    for schema in SCHEMAS.values():
        wrong = {"apiVersion": "v1", "kind": "Other", "metadata": {}, "spec": {}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_profiles_use_every_kind(helm4: Helm) -> None:
    files = (CHART / "ci").glob("*-values.yaml")
    kinds = {m["kind"] for file in files for m in helm4.render("--values", str(file))}
    assert kinds >= {*SCHEMAS, "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}
    assert kinds >= {"Job", "Pod", "Deployment", "StatefulSet", "ServiceAccount", "ConfigMap"}


def test_the_schema_and_the_readme_follow_their_sources() -> None:
    assert generated.SCHEMA.read_text() == generated.schema(), "run make chart-docs"
    assert generated.README.read_text() == generated.readme(), "run make chart-docs"


def test_the_server_takes_what_the_chart_sets(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = server_of(manifests)
    variables = dict(only(manifests, "ConfigMap")["data"])
    variables |= {entry["name"]: entry.get("value", "given") for entry in container["env"]}
    ours = {name: value for name, value in variables.items() if name.startswith("LORAPLEX_")}
    for name, value in ours.items():
        if name != "LORAPLEX_BASE":  # whose directory must exist
            monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.host, settings.port, str(settings.data_dir)) == ("0.0.0.0", 8000, "/data")
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]


def test_every_setting_can_be_set(helm4: Helm) -> None:
    samples: dict[str, Any] = {"integer": 1_000_000, "number": 2.5, "string": "text"}
    samples |= {"boolean": True}
    properties = json.loads(generated.SCHEMA.read_text())["properties"]["settings"]["properties"]
    chosen = {
        name: kind["enum"][0]
        if "enum" in kind
        else min(samples[kind["type"]], kind["maximum"])
        if "maximum" in kind
        else samples[kind["type"]]
        for name, kind in properties.items()
        if name not in RENAMED
    }
    chosen |= {"max_loras": 4, "max_cpu_loras": 16, "max_lora_rank": 16}
    rendered = helm4.render("--set-json", f"settings={json.dumps(chosen)}")
    data = only(rendered, "ConfigMap")["data"]
    known = {variable_of(name) for name in Settings.model_fields}
    assert data.keys() <= known
    elsewhere = {"LORAPLEX_DATABASE_URL", "LORAPLEX_ADMIN_KEY_FILE"}
    elsewhere |= {"LORAPLEX_CONSOLE_SECRET_FILE"}
    assert known - data.keys() == elsewhere | {"LORAPLEX_URL", "LORAPLEX_API_KEY"}
    assert data["LORAPLEX_MAX_ADAPTER_MIB"] == "1000000", "no 1e+06"
    assert data["LORAPLEX_DEMO"] == "true"


def test_secrets_are_only_named(manifests: Manifests) -> None:
    assert "Secret" not in {m["kind"] for m in manifests}
    job = [m for m in manifests if m["kind"] == "Job"]
    uses_database = any(e["name"] == "LORAPLEX_DATABASE_URL" for e in server_of(manifests)["env"])
    assert bool(job) == uses_database
    containers = [j["spec"]["template"]["spec"]["containers"][0] for j in job]
    for container in [server_of(manifests), *containers]:
        url = [e for e in container["env"] if e["name"] == "LORAPLEX_DATABASE_URL"]
        assert all(e["valueFrom"]["secretKeyRef"]["name"] == "loraplex-database" for e in url)


def test_stopping_leaves_time_to_drain(helm4: Helm) -> None:
    rendered = helm4.render(*values(**{"settings.drain_seconds": 120.5, "preStopSeconds": 20}))
    pod = only(rendered, "StatefulSet")["spec"]["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] == 20
    assert pod["terminationGracePeriodSeconds"] >= 120.5 + 20
    assert only(rendered, "ConfigMap")["data"]["LORAPLEX_DRAIN_SECONDS"] == "120.5"


def test_envoy_stays_as_long_as_a_server_lets_streams_go_on(helm4: Helm) -> None:
    given = {"settings.drain_seconds": 120, "settings.notice_seconds": 9, "preStopSeconds": 20}
    rendered = helm4.render(*values(**given, **{"envoy.enabled": "true"}))
    pod = only(rendered, "Deployment", "demo-loraplex-envoy")["spec"]["template"]["spec"]
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep == 120 + 9 + 20
    assert pod["terminationGracePeriodSeconds"] > sleep


def test_an_image_can_be_named_by_its_digest(helm4: Helm) -> None:
    digest = f"sha256:{'0a' * 32}"
    rendered = helm4.render(*values(**{"image.digest": f'"{digest}"', **DATABASE}))
    assert server_of(rendered)["image"] == f"loraplex@{digest}"
    assert job_of(rendered)["containers"][0]["image"] == f"loraplex@{digest}"
    with pytest.raises(Refused):
        helm4.render(*values(**{"image.digest": '"sha256:0a"'}))


def test_an_existing_claim_replaces_the_charts_own(helm4: Helm) -> None:
    rendered = helm4.render(*values(**{"persistence.existingClaim": '"mine"'}))
    servers = only(rendered, "StatefulSet")["spec"]
    assert "volumeClaimTemplates" not in servers
    volumes = {v["name"]: v for v in servers["template"]["spec"]["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "mine"
    assert volumes["tmp"]["emptyDir"]["sizeLimit"] == "2Gi"


def test_a_slow_start_is_waited_for(helm4: Helm) -> None:
    probe = server_of(helm4.render(*values(startupSeconds=1801)))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1801
    assert probe["httpGet"]["path"] == "/startupz"


def test_a_changed_setting_restarts_the_servers(helm4: Helm) -> None:
    def checksum(*arguments: str) -> str:
        template = only(helm4.render(*arguments), "StatefulSet")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/settings"])

    assert checksum() == checksum()
    assert checksum() != checksum(*values(**{"settings.max_model_len": 1024}))


def test_gpus(helm4: Helm) -> None:
    fits = {"gpus": 2, "sizing.gpuGiB": 80, "settings.engine_args": '"--max-num-seqs 8"'}
    rendered = helm4.render(*values(**fits))
    container = server_of(rendered)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert container["image"] == f"loraplex:{version}-gpu"
    arguments = only(rendered, "ConfigMap")["data"]["LORAPLEX_ENGINE_ARGS"]
    assert arguments == "--tensor-parallel-size 2 --max-num-seqs 8"
    assert server_of(helm4.render())["image"] == f"loraplex:{version}-cpu"


ADMIN_KEY = {"adminKey.secretName": '"admin"'}
DATABASE = {"database.secretName": '"db"', **ADMIN_KEY}
ORIGIN = {"settings.origin": '"s3://b/p"'}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"replicas": 2, **ORIGIN}, "Set database.secretName"),
        ({"replicas": 2, **DATABASE}, "set settings.origin"),
        ({"replicas": 2, "database.secretName": '"db"', **ORIGIN}, "set adminKey.secretName"),
        ({"autoscaling.kind": '"hpa"', **DATABASE, **ORIGIN}, "needs metrics"),
        ({"autoscaling.kind": '"keda"', **DATABASE, **ORIGIN}, "autoscaling.prometheusUrl"),
        ({"autoscaling.kind": '"keda"'}, "4 servers need one database"),
        (
            {"autoscaling.kind": '"hpa"', "autoscaling.minReplicas": 5, **DATABASE, **ORIGIN},
            "minReplicas is above",
        ),
        ({"settings.max_loras": 400}, "raise the limit"),
        ({"settings.max_loras": 400, "gpus": 1, "settings.max_lora_rank": 512}, "raise gpus"),
        ({"settings.max_cpu_loras": 2}, "must be at least settings.max_loras"),
        ({"settings.base": '"/models/llama"'}, "set modelsClaim"),
        ({"ingress.enabled": "true"}, "needs ingress.host"),
        ({"httpRoute.enabled": "true"}, "needs httpRoute.gateway"),
        (
            {"persistence.existingClaim": '"mine"', "replicas": 2, **DATABASE, **ORIGIN},
            "existingClaim is the data folder of one server",
        ),
        ({"inferencePool.enabled": "true"}, "inferencePool.endpointPicker"),
        (
            {
                "inferencePool.enabled": "true",
                "inferencePool.endpointPicker": '"epp"',
                "envoy.enabled": "true",
            },
            "both route by adapter",
        ),
        ({"monitoring.serviceMonitor": "true"}, "allows no scrapes"),
        ({"settings.max_lora": 4}, "max_lora"),
        ({"settings.max_lora_rank": 12}, "max_lora_rank"),
        ({"replica": 2}, "replica"),
        ({"service.port": 0}, "port"),
        ({"resources.limits.memory": "null"}, "memory"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(
    helm: Helm, given: dict[str, object], reason: str
) -> None:
    with pytest.raises(Refused) as refusal:
        helm.render(*values(**given))
    assert reason in str(refusal.value)


def test_scaled_servers_are_not_set_back_to_a_number(helm4: Helm) -> None:
    given = {"autoscaling.kind": '"keda"', "autoscaling.prometheusUrl": '"http://p"'}
    rendered = helm4.render(*values(**given, **DATABASE, **ORIGIN))
    assert "replicas" not in only(rendered, "StatefulSet")["spec"]


def test_a_database_keeps_the_volume_of_one_server_only_as_a_cache(helm4: Helm) -> None:
    def when_scaled(*arguments: str) -> str:
        spec = only(helm4.render(*arguments), "StatefulSet")["spec"]
        return str(spec["persistentVolumeClaimRetentionPolicy"]["whenScaled"])

    assert when_scaled() == "Retain"
    assert when_scaled(*values(**DATABASE)) == "Delete"


@pytest.mark.parametrize(
    ("value", "name", "variable"),
    [
        ("adminKey", "admin-key", "LORAPLEX_ADMIN_KEY_FILE"),
        ("consoleSecret", "console-secret", "LORAPLEX_CONSOLE_SECRET_FILE"),
    ],
)
def test_every_server_gets_the_file_of_the_secret(
    helm4: Helm, value: str, name: str, variable: str
) -> None:
    given = {f"{value}.secretName": '"mine"', f"{value}.secretKey": '"first"'}
    servers = only(helm4.render(*values(**given)), "StatefulSet")["spec"]["template"]["spec"]
    (container,) = servers["containers"]
    (file,) = [e["value"] for e in container["env"] if e["name"] == variable]
    (volume,) = [v for v in servers["volumes"] if v["name"] == name]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == name]
    assert volume["secret"]["secretName"] == "mine"
    assert volume["secret"]["items"] == [{"key": "first", "path": Path(file).name}]
    assert mount["mountPath"] == str(Path(file).parent)
    assert mount["readOnly"]
    without = server_of(helm4.render())
    assert not [e for e in without["env"] if e["name"] == variable]


def test_proxies_to_trust_are_a_value(helm4: Helm) -> None:
    networks = {"settings.trusted_proxies": '"10.0.0.0/8,192.0.2.1"'}
    data = only(helm4.render(*values(**networks)), "ConfigMap")["data"]
    assert data["LORAPLEX_TRUSTED_PROXIES"] == "10.0.0.0/8,192.0.2.1"


def test_operations_have_a_port_of_their_own(helm4: Helm) -> None:
    peers = '[{"namespaceSelector": {}}]'
    given = {"settings.operations_port": 9090, "monitoring.serviceMonitor": "true"}
    given |= {"monitoring.scrapeTokenSecret": '"token"', "networkPolicy.scrapeFrom": peers}
    rendered = helm4.render(*values(**given))
    container = only(rendered, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "operations", "containerPort": 9090} in container["ports"]
    (endpoint,) = only(rendered, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] == "operations"
    assert endpoint["authorization"]["credentials"]["name"] == "token"
    policies = [m for m in rendered if m["kind"] == "NetworkPolicy"]
    policy = next(p for p in policies if p["metadata"]["name"].endswith("loraplex"))
    ports = [rule["ports"][0]["port"] for rule in policy["spec"]["ingress"]]
    assert ports == ["http", "operations"]
