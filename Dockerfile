# One image for every part: api, workers, dispatcher, migrations and Flower.
FROM python:3.13-slim-bookworm AS build
COPY requirements/production.lock /build/
RUN python -m venv --without-pip /opt/tenantry \
    && pip --python /opt/tenantry/bin/python install --no-cache-dir --require-hashes --no-deps \
        --only-binary :all: -r /build/production.lock
WORKDIR /opt/tenantry/app
COPY alembic.ini ./
COPY tenants tenants
COPY tasks tasks
COPY schema schema
COPY api api
COPY migrations migrations
RUN printf '%s\n' /opt/tenantry/app > "$(/opt/tenantry/bin/python -c 'import site; print(site.getsitepackages()[0])')/tenantry.pth" \
    && printf '#!/bin/sh\nexec /opt/tenantry/bin/python -P -m api.cli "$@"\n' > /opt/tenantry/bin/tenantry \
    && chmod 755 /opt/tenantry/bin/tenantry \
    && /opt/tenantry/bin/python -m compileall -q -j 0 /opt/tenantry

FROM python:3.13-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/tenantry --create-home tenantry \
    && install -d -o tenantry -g tenantry /var/lib/tenantry/objects
COPY --from=build /opt/tenantry /opt/tenantry
ENV PATH=/opt/tenantry/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /opt/tenantry/app
USER tenantry
VOLUME /var/lib/tenantry/objects
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "--factory", "api.app:create", "--host", "0.0.0.0", "--port", "8000", "--no-access-log", "--ws-max-size", "2097152", "--timeout-graceful-shutdown", "20"]
