# docker build -t agentd .
# docker run --init -v agentd:/var/lib/agentd -v ./agents:/etc/agentd/agents:ro -p 127.0.0.1:8420:8420 agentd
#
# Policies are isolated at level 2 under Docker's default seccomp profile, without a capability: Landlock and seccomp need neither.
# A container is one unit: when it stops, the daemon drains its runners first (drain_timeout, 30 s), so give it that time.
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.12-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels agentd
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/agentd agentd \
    && mkdir -p /etc/agentd/agents
USER 10001
WORKDIR /var/lib/agentd
VOLUME /var/lib/agentd
ENV AGENTD_STATE_DIRECTORY=/var/lib/agentd \
    AGENTD_AGENTS=/etc/agentd/agents \
    AGENTD_HTTP_HOST=0.0.0.0 \
    AGENTD_LOG_FORMAT=json
EXPOSE 8420
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8420/livez', timeout=2)"]
ENTRYPOINT ["agentd"]
CMD ["run"]
