# Image of the control plane: Prefect server, workers of the flows, `tsgb deploy`; infra/compose.yaml
# and the work pools of deployments/ start all of them from it.
#
#   docker build -f infra/control.Dockerfile -t tsgb-control .        in the repository's folder
#
# The base has torch, which stage 2 and local training use; it is the image of rented machines (IMAGE in
# tsgb/setting_groups.py), whose own Dockerfile holds no code. Without a card, a smaller image does:
#
#   docker build --build-arg BASE=python:3.12-slim --build-arg PIP_EXTRA_INDEX_URL=CPU_WHEELS ...
#
# It has not been built where it was written, because there was no Docker; the tests read it, and run
# the commands of compose.yaml by hand.
ARG BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
FROM ${BASE}

# All flow runs work in /opt/tsgb, the repository's root; what they keep is in /var/lib/tsgb, a volume.
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml README.md LICENSE /opt/tsgb/
COPY tsgb /opt/tsgb/tsgb
COPY flows /opt/tsgb/flows
COPY infra /opt/tsgb/infra
COPY deployments /opt/tsgb/deployments
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --no-input \
      --disable-pip-version-check --root-user-action ignore --editable '/opt/tsgb[smollm2,dask,serve]' \
 && useradd --system --create-home tsgb \
 && mkdir /var/lib/tsgb \
 && chown tsgb:tsgb /var/lib/tsgb

ENV PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=1 \
    PREFECT_HOME=/var/lib/tsgb/prefect \
    TSGB_CACHE_DIR=/var/lib/tsgb/cache
USER tsgb
WORKDIR /opt/tsgb
VOLUME /var/lib/tsgb
