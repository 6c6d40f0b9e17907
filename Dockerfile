# The example app: worker, beat, Flower, producer and exporter all run from this image.
FROM python:3.12.8-slim-bookworm

RUN groupadd --gid 10001 app \
    && useradd --create-home --uid 10001 --gid 10001 app \
    && install -d -o app -g app /var/lib/rts

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY rts ./rts
RUN pip install --no-cache-dir '.[flower,prometheus,workers]'
COPY celeryconfig.py ./
COPY workers ./workers

USER app
ENV PYTHONUNBUFFERED=1 \
    RTS_SPOOL_DIR=/var/lib/rts/spool
CMD ["celery", "-A", "workers.app", "worker", "-l", "INFO"]
