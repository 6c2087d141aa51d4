"""Values of pods that the chart passes on: where they end up."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from server.engine.device.base_size import BaseSize
from server.engine.device.device import Device
from server.engine.device.memory import GpuPlan, PlannedSlots
from server.settings import Settings
from tests.helm.conftest import Manifests
from tests.helm.programs import CHART, Helm, Refused
from tests.helm.test_chart import DATABASE, job_of, only, values
from tests.llama import LLAMA31_8B, LLAMA31_70B
from tests.server.engine.device.devices import A10, GIB, gpu

FOUR_H100 = gpu("NVIDIA H100 80GB HBM3", 79.6, count=4)
USEFUL_TOKENS = 8192
"""A KV cache of fewer tokens would serve few chats at a time."""
AUTHORITY: dict[str, list[dict[str, Any]]] = {
    "extraVolumes": [{"name": "ca", "secret": {"secretName": "database-ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
    "extraEnv": [{"name": "PGSSLROOTCERT", "value": "/ca/ca.crt"}],
}
"""What PostgreSQL's clients need if its certificate is of the operator's own authority."""


def shared_memory_of(manifests: Manifests) -> str:
    volumes = only(manifests, "StatefulSet")["spec"]["template"]["spec"]["volumes"]
    (memory,) = [volume["emptyDir"] for volume in volumes if volume["name"] == "shm"]
    assert memory["medium"] == "Memory"
    return str(memory["sizeLimit"])


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, "1Gi"),
        ({"gpus": 1}, "1Gi"),
        ({"gpus": 4}, "4Gi"),
        ({"gpus": 4, "sharedMemory": '"2Gi"'}, "2Gi"),
    ],
)
def test_shared_memory_is_what_the_workers_need(
    helm4: Helm, given: dict[str, object], size: str
) -> None:
    limit = {"resources.limits.memory": '"32Gi"'}
    assert shared_memory_of(helm4.render(*values(**given, **limit))) == size


def test_shared_memory_counts_against_the_limit_of_a_gpu_server(helm4: Helm) -> None:
    with pytest.raises(Refused, match=r"resources\.limits\.memory"):
        helm4.render(*values(**{"gpus": 1, "sharedMemory": '"6Gi"'}))


def test_the_migration_reaches_the_database_as_the_servers_do(helm4: Helm) -> None:
    given = {name: json.dumps(value) for name, value in AUTHORITY.items()}
    manifests = helm4.render(*values(**given, **DATABASE))
    servers = only(manifests, "StatefulSet")["spec"]["template"]["spec"]
    for pod in (servers, job_of(manifests)):
        (container,) = pod["containers"]
        assert AUTHORITY["extraEnv"][0] in container["env"]
        assert AUTHORITY["extraVolumeMounts"][0] in container["volumeMounts"]
        assert AUTHORITY["extraVolumes"][0] in pod["volumes"]


def test_the_migration_runs_where_the_servers_run(helm4: Helm) -> None:
    given = {
        "nodeSelector": '{"pool": "llm"}',
        "tolerations": '[{"key": "llm", "operator": "Exists"}]',
        "priorityClassName": '"serving"',
    }
    manifests = helm4.render(*values(**given, **DATABASE))
    servers = only(manifests, "StatefulSet")["spec"]["template"]["spec"]
    for pod in (servers, job_of(manifests)):
        assert pod["nodeSelector"] == {"pool": "llm"}
        assert pod["tolerations"] == [{"key": "llm", "operator": "Exists"}]
        assert pod["priorityClassName"] == "serving"


def test_values_of_pods_are_passed_on(helm4: Helm) -> None:
    first = '[{"name": "first", "image": "busybox", "command": ["true"]}]'
    given = {
        "initContainers": first,
        "runtimeClassName": '"nvidia"',
        "podLabels": '{"team": "llm"}',
        "podAnnotations": '{"example.com/a": "b"}',
    }
    template = only(helm4.render(*values(**given)), "StatefulSet")["spec"]["template"]
    assert template["spec"]["initContainers"] == json.loads(first)
    assert template["spec"]["runtimeClassName"] == "nvidia"
    assert template["metadata"]["labels"]["team"] == "llm"
    assert template["metadata"]["annotations"]["example.com/a"] == "b"


@pytest.mark.parametrize(
    ("profile", "device", "config"),
    [
        ("gpu", A10, LLAMA31_8B),
        ("tensor-parallel", FOUR_H100, LLAMA31_70B),
    ],
)
def test_a_gpu_profile_fits_by_the_servers_own_arithmetic(
    profile: str, device: Device, config: dict[str, object]
) -> None:
    given = yaml.safe_load((CHART / "ci" / f"{profile}-values.yaml").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())["settings"]
    chosen = defaults | given["settings"]
    arguments = (*chosen.get("engine_args", "").split(), "--tensor-parallel-size", given["gpus"])
    settings = Settings(
        max_loras=chosen["max_loras"],
        max_lora_rank=chosen["max_lora_rank"],
        engine_args=tuple(map(str, arguments)),
    )
    base = BaseSize.from_config(config)
    plan = GpuPlan.of(settings, device, base)
    planned = PlannedSlots(settings.max_loras, settings.max_lora_rank)
    plan.check(planned)
    left = plan.room_bytes - planned.num_slots * plan.slot_bytes(planned.rank)
    assert left * given["gpus"] // base.kv_bytes_per_token >= USEFUL_TOKENS
    sizing = given["sizing"]
    assert sizing["gpuGiB"] <= round(device.gpus[0].total_bytes / GIB + 0.5)
    assert sizing["baseGiB"] == pytest.approx(base.weights_bytes / GIB, rel=0.02)
    mebibytes = base.slot_bytes_per_rank / (1 << 20)
    assert sizing["adapterMiBPerRank"] == pytest.approx(mebibytes, rel=0.05)
