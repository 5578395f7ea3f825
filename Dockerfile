# The agent as an image. `make image` and the tests of the image install one wheel, that of `make build` in dist/: what is
# shipped is what was tested.
# Without an index: dependencies' wheels in dist/ too, and --build-arg PIP_NO_INDEX=1.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG PIP_NO_INDEX=
COPY requirements.lock /build/
COPY dist/*.whl /build/dist/
# pip and its metadata serve nobody at run time: dependencies are installed from outside the environment
RUN python3 -m venv /build/pip && python3 -m venv --without-pip /opt/ullage \
    && pip="/build/pip/bin/pip --python /opt/ullage/bin/python install --no-cache-dir --no-deps --find-links /build/dist" \
    && $pip --require-hashes --only-binary :all: -r /build/requirements.lock \
    && $pip --no-index /build/dist/ullage-*.whl \
    && install -d -o 65534 -g 65534 -m 0755 /build/state

FROM ${BASE}
ARG VERSION=
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="Ullage" \
    org.opencontainers.image.description="The node agent that tells how far container storage is from full, before it is" \
    org.opencontainers.image.source="https://github.com/ullage/ullage" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}"
ENV PATH="/opt/ullage/bin:${PATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY --from=build /opt/ullage /opt/ullage
# for whoever runs it without a volume; what is written there is gone with the container
COPY --from=build --chown=65534:65534 /build/state /var/lib/ullage
# root sees more, see docs/capabilities.md; whoever wants that says so
USER 65534:65534
EXPOSE 10940
# with another address or with TLS, give it a check of your own
HEALTHCHECK --interval=60s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:10940/-/healthy', timeout=4)"]
ENTRYPOINT ["ullage"]
CMD ["run"]
