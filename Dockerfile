# syntax=docker/dockerfile:1
# Two images of the same server: `make image`, `make image TARGET=gpu`, or `docker build --target cpu .`.
# Everything that is installed is locked, with hashes: requirements/*.hashes.txt (make hashes).
# rouge-score has no wheel: setuptools, as pip finds it, builds one of its hashed source.
# The secret `pip` is a pip.conf for an index of your own; without it pip uses the public one.
# docs/install.md says what of this was run.

ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM $BASE AS python
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# The environment of the image has no pip; the one in /opt/pip installs into it. slim.py needs
# `strip`, and libnuma to import vLLM.
FROM python AS build
RUN apt-get update && apt-get install --yes --no-install-recommends binutils libnuma1 \
    && python -m venv /opt/pip \
    && python -m venv --without-pip /opt/loraplex
ENV PATH=/opt/pip/bin:$PATH PIP_PYTHON=/opt/loraplex/bin/python \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

FROM build AS build-cpu
# PyTorch's CPU build isn't on the package index; pytorch.org, "Get started", names this one.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/cpu.hashes.txt deploy/image/slim.py ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-compile --require-hashes --no-deps \
        --only-binary :all: --no-binary rouge-score \
        --extra-index-url "$TORCH_INDEX" -r cpu.hashes.txt \
    && /opt/loraplex/bin/python slim.py cpu /opt/loraplex

FROM build AS build-gpu
COPY requirements/gpu.hashes.txt deploy/image/slim.py ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-compile --require-hashes --no-deps \
        --only-binary :all: --no-binary rouge-score \
        -r gpu.hashes.txt \
    && /opt/loraplex/bin/python slim.py gpu /opt/loraplex

# The server itself is a layer of its own: a new release changes only these few megabytes.
FROM build-cpu AS package-cpu
COPY . .
RUN pip install --no-deps --no-build-isolation --prefix /opt/package .

FROM build-gpu AS package-gpu
COPY . .
RUN pip install --no-deps --no-build-isolation --prefix /opt/package .

FROM python AS server
# gcc compiles the CPU's LoRA kernel at start, and Triton's on a GPU. Neither needs link-time
# optimization or sanitizers, which are more than half of gcc.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /usr/bin/*lto-dump* \
        /usr/lib/gcc/*/*/lto1 /usr/lib/gcc/*/*/lib*san.* /usr/lib/*-linux-gnu/lib*san.so.* \
    && useradd --uid 10001 --home-dir /tmp --no-create-home loraplex \
    && install --directory --owner loraplex --group loraplex /data
ENV PATH=/opt/loraplex/bin:$PATH \
    LORAPLEX_DATA_DIR=/data \
    LORAPLEX_HOST=0.0.0.0 \
    HOME=/tmp \
    XDG_CACHE_HOME=/data/cache \
    HF_HOME=/data/cache/huggingface
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# The engine starts in half a minute and may fetch a base first.
HEALTHCHECK --interval=10s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('LORAPLEX_PORT', '8000') + '/livez', timeout=9)"]
ENTRYPOINT ["loraplex"]
CMD ["serve"]

FROM server AS cpu
COPY --from=build-cpu /opt/loraplex /opt/loraplex
COPY --from=package-cpu /opt/package /opt/loraplex

FROM server AS gpu
COPY --from=build-gpu /opt/loraplex /opt/loraplex
COPY --from=package-gpu /opt/package /opt/loraplex
