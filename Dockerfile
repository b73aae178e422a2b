# By tag, or by digest (deploy/images.env).
ARG PYTHON_IMAGE=python:3.11-slim
FROM $PYTHON_IMAGE AS dependencies
ARG PIP_RETRIES=5
ENV PIP_RETRIES=$PIP_RETRIES PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements-torch.txt requirements.txt ./
RUN pip install --no-compile --no-deps -r requirements-torch.txt && pip install --no-compile --no-deps --require-hashes -r requirements.txt
# What only compiling against these libraries, or testing them, would need.
RUN cd /opt/venv/lib/python3.11/site-packages \
    && rm -rf torch/include torch/share torch/test torch/lib/*.a caffe2 \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && find . -type f \( -name '*.pyi' -o -name '*.pxd' -o -name '*.h' -o -name '*.hpp' -o -name '*.cuh' \) -delete

FROM dependencies AS package
WORKDIR /src
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

# What stands before several replicas; see docker-compose.yml.
FROM $PYTHON_IMAGE AS proxy
RUN apt-get update && apt-get install -y --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*
COPY deploy/haproxy.cfg /etc/haproxy/haproxy.cfg
RUN haproxy -c -f /etc/haproxy/haproxy.cfg
USER haproxy
EXPOSE 8000
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=2s --timeout=5s --start-period=10s --retries=30 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
CMD ["haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg"]

FROM $PYTHON_IMAGE
RUN groupadd --gid 10001 lacuna \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin lacuna \
    && install -d -o lacuna -g lacuna /data /bundles
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/data ORT_DISABLE_TELEMETRY=1 \
    LACUNA_HOST=0.0.0.0 LACUNA_PORT=8000 LACUNA_DATA_DIR=/data
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /dist /opt/dist
# Importing it all once shows that the image is whole, and leaves the bytecode of just the modules in use: nobody can write it
# later, and every start would take 9 s longer without (80 MB; that of all modules is 260 MB).
RUN pip install --no-cache-dir --no-index --no-deps /opt/dist/*.whl \
    && python -c "import service.workers, service.backup, training.cli; from models.encoders import image; image.import_torchvision()"
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['LACUNA_PORT'] + '/health/ready', timeout=4)"]
ENTRYPOINT ["lacuna"]
CMD ["serve"]
