# The service as an image: `docker build -t spawn .`. compose.yaml runs three of them.

# The whole Python image, not the slim one: a dependency without a wheel for this machine is compiled here.
FROM python:3.11-bookworm AS build
WORKDIR /src
COPY requirements ./requirements
RUN python -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir --require-hashes -r requirements/bootstrap.lock
COPY . .
# The versions that the tests ran with, without what only tests need.
RUN python -m venv --without-pip /opt/spawn \
 && VIRTUAL_ENV=/opt/spawn /opt/uv/bin/uv pip install --no-cache \
      --constraint requirements/all.lock --build-constraint requirements/all.lock ./schemas .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/spawn /opt/spawn
# Play money and the simulated cloud keep their files here; on a real chain with a real provider nothing is.
RUN useradd --system --uid 8402 --home-dir /var/lib/spawn --create-home spawn
USER spawn
WORKDIR /var/lib/spawn
ENV PATH=/opt/spawn/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8402
CMD ["spawn", "serve"]
