# The agent as an image: docker build -t ullage .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN python3 -m venv /opt/ullage && /opt/ullage/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock \
    && python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
COPY collectors collectors
RUN /opt/build/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/ullage/bin/pip install --no-cache-dir --no-deps --no-index /dist/*.whl

FROM ${BASE}
COPY --from=build /opt/ullage /opt/ullage
EXPOSE 10940
ENTRYPOINT ["/opt/ullage/bin/ullage"]
CMD ["run"]
