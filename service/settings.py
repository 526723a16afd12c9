"""Settings of the service, read once from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from syncnorm.service.origins import Trusted, url_authority
from syncnorm.trainer.contract.initial_weights import WeightAccess
from syncnorm.trainer.storage import data_urls
from syncnorm.trainer.storage.storage import is_url

WILDCARDS = ("0.0.0.0", "::")
"""Every address of this host."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_PORT = 8000
_MOST_DIGITS = 9
_MOST_DAYS = 36_500


@dataclass(frozen=True)
class Settings:
    """Settings of the service. Parts that are None are started as embedded ones."""

    home: Path
    host: str = "127.0.0.1"
    port: int | None = None
    """None: 8000, or a free port where that is taken."""
    database_url: str | None = None
    ray_address: str | None = None
    """URL of the Ray dashboard, for example http://ray-head:8265."""
    mlflow_uri: str | None = None
    mlflow_public_url: str | None = None
    """For links: where a browser reaches MLflow; None: mlflow_uri."""
    public_url: str | None = None
    """For links: where a browser reaches this API; None: the address it listens on."""
    storage: str | None = None
    """Folder or fsspec URL for launch files, checkpoints and results; every worker must reach it."""
    worker_url: str | None = None
    """Where workers reach this API; None: the address it listens on."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names of this API, for example train.example.org, gpu7:8000 or *.example.org."""
    auth: bool = False
    admin_token_file: Path | None = None
    """Holds the token of the first admin; None: `admin.token` in the state folder, made at the first start."""
    allow_code: bool = False
    allow_requirements: bool = False
    """Whether jobs may bring requirements, which pip installs on the workers' hosts."""
    secrets_key_file: Path | None = None
    """Holds the key that secrets are sealed with; None: `secrets.key` in the state folder, made at the first start."""
    data_urls: tuple[str, ...] = data_urls.DEFAULT
    """Prefixes of the URLs that specs may read data from if user code is not allowed."""
    rate_limit: float = 0.0
    """Requests a second of one token, with bursts of twice that; 0: no limit."""
    max_queued: int = 10_000
    """Unfinished jobs of one owner."""
    max_running: int | None = None
    """Running jobs of one owner; None: no limit."""
    max_gpus: int | None = None
    """GPUs in use by one owner; None: no limit."""
    webhook_urls: tuple[str, ...] = ()
    """Receivers of webhooks."""
    webhook_key_file: Path | None = None
    """Holds the secret that webhooks are signed with."""
    log_retention_days: int = 30
    """Counted from the end of a job."""
    log_mb_per_job: int = 64
    """Megabytes of log text kept for one job; beyond that its oldest lines are deleted."""
    log_mb_total: int = 10_240
    """Megabytes of log text kept for all jobs; beyond that the oldest lines are deleted."""
    event_retention_days: int = 90
    """For events of workers, counted from the end of their job."""
    audit_retention_days: int = 365
    idempotency_retention_days: int = 7
    tick_s: float = 2.0
    """Longest pause between two ticks of the reconciler."""
    lease_s: float = 30.0
    """An attempt that is silent for longer may be dead; Ray has to agree before it counts as lost."""
    startup_timeout_s: float = 600.0
    """From the launch of an attempt to its first training step."""
    warm: bool = True
    """Whether plans are made by processes that are forked from a parent that has their imports done."""
    warm_jobs: bool = True
    """The same for drivers and ranks on the embedded Ray."""

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> Settings:
        """Raises: ValueError naming the variable that can't be read."""
        host = environ.get("SYNCNORM_HOST") or "127.0.0.1"
        loopback = host in LOOPBACK
        settings = Settings(
            home=Path(environ.get("SYNCNORM_HOME") or ".syncnorm").expanduser().resolve(),
            host=host,
            port=_port(environ),
            database_url=environ.get("SYNCNORM_DATABASE_URL") or None,
            ray_address=environ.get("SYNCNORM_RAY_ADDRESS") or None,
            mlflow_uri=environ.get("SYNCNORM_MLFLOW_URI") or None,
            mlflow_public_url=_url(environ, "SYNCNORM_MLFLOW_PUBLIC_URL"),
            public_url=_url(environ, "SYNCNORM_PUBLIC_URL"),
            storage=_storage(environ),
            worker_url=_url(environ, "SYNCNORM_WORKER_URL"),
            allowed_hosts=_list(environ, "SYNCNORM_ALLOWED_HOSTS"),
            auth=_flag(environ, "SYNCNORM_AUTH", default=not loopback),
            admin_token_file=Path(path) if (path := environ.get("SYNCNORM_ADMIN_TOKEN_FILE")) else None,
            allow_code=(allow_code := _flag(environ, "SYNCNORM_ALLOW_CODE", default=loopback)),
            allow_requirements=_flag(environ, "SYNCNORM_ALLOW_REQUIREMENTS", default=allow_code),
            secrets_key_file=Path(path) if (path := environ.get("SYNCNORM_SECRETS_KEY_FILE")) else None,
            data_urls=tuple((environ.get("SYNCNORM_DATA_URLS") or ",".join(data_urls.DEFAULT)).split(",")),
            rate_limit=float(_number(environ, "SYNCNORM_RATE_LIMIT") or 0),
            max_queued=_number(environ, "SYNCNORM_MAX_QUEUED") or 10_000,
            max_running=_number(environ, "SYNCNORM_MAX_RUNNING"),
            max_gpus=_number(environ, "SYNCNORM_MAX_GPUS"),
            webhook_urls=tuple(filter(None, environ.get("SYNCNORM_WEBHOOK_URLS", "").split(","))),
            webhook_key_file=Path(path) if (path := environ.get("SYNCNORM_WEBHOOK_KEY_FILE")) else None,
            log_retention_days=_within(environ, "SYNCNORM_LOG_RETENTION_DAYS", 30, _MOST_DAYS),
            log_mb_per_job=_within(environ, "SYNCNORM_LOG_MB_PER_JOB", 64, 1_000_000),
            log_mb_total=_within(environ, "SYNCNORM_LOG_MB_TOTAL", 10_240, 100_000_000),
            event_retention_days=_within(environ, "SYNCNORM_EVENT_RETENTION_DAYS", 90, _MOST_DAYS),
            audit_retention_days=_within(environ, "SYNCNORM_AUDIT_RETENTION_DAYS", 365, _MOST_DAYS),
            idempotency_retention_days=_within(environ, "SYNCNORM_IDEMPOTENCY_RETENTION_DAYS", 7, _MOST_DAYS),
            warm=(warm := _flag(environ, "SYNCNORM_WARM", default=True)),
            warm_jobs=warm and _flag(environ, "SYNCNORM_WARM_JOBS", default=True),
        )
        _ = settings.trusted  # raises for an invalid name
        if not settings.auth and not loopback:
            raise ValueError(
                f"SYNCNORM_HOST={host} is reachable from other machines, which needs authentication. "
                "Unset SYNCNORM_AUTH, or listen on 127.0.0.1."
            )
        if settings.webhook_urls and settings.webhook_key_file is None:
            raise ValueError("SYNCNORM_WEBHOOK_URLS needs SYNCNORM_WEBHOOK_KEY_FILE, the secret to sign with.")
        return settings

    @property
    def trusted(self) -> Trusted:
        """The names and origins of this API."""
        bound = () if self.host in WILDCARDS else (self.host,)
        return Trusted.from_settings(bound, (self.public_url, self.worker_url), self.allowed_hosts)

    @property
    def weights(self) -> WeightAccess:
        """What files jobs may start from. Where user code is allowed, it could open any file anyway."""
        if self.allow_code:
            return WeightAccess()
        folders = [folder for folder in (str(self.home), self.storage_root) if not is_url(folder)]
        return WeightAccess(urls=list(self.data_urls), private=folders)

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'service.db'}"

    @property
    def storage_root(self) -> str:
        return self.storage or str(self.home / "storage")


def _url(environ: Mapping[str, str], name: str) -> str | None:
    url = (environ.get(name) or "").rstrip("/")
    if not url:
        return None
    try:
        url_authority(url)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    return url


def _list(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in (environ.get(name) or "").split(",") if part.strip())


def _port(environ: Mapping[str, str]) -> int | None:
    text = environ.get("SYNCNORM_PORT")
    if not text:
        return None
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError(f"SYNCNORM_PORT must be a port number from 1 to 65535, got {text!r}")
    return int(text)


def _storage(environ: Mapping[str, str]) -> str | None:
    """Validate SYNCNORM_STORAGE. It is written to launch files, messages and rows, so it must not hold secrets."""
    text = environ.get("SYNCNORM_STORAGE", "").removeprefix("file://")
    if text.startswith("memory://"):
        raise ValueError("SYNCNORM_STORAGE must be storage that all hosts reach; memory:// exists in one process only.")
    if "://" in text and (not text.isprintable() or any(mark in text for mark in ("@", "?", "#", "::", " "))):
        raise ValueError(
            "SYNCNORM_STORAGE must be a folder or a plain address such as s3://bucket/folder, without user, password "
            "and options. Give credentials to the hosts, as the SDK of AWS, Google or Azure finds them there."
        )
    return text or None


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise ValueError(f"{name} must be a whole number of at most {_MOST_DIGITS} digits, got {text[:40]!r}")
    return int(text)


def _within(environ: Mapping[str, str], name: str, default: int, most: int) -> int:
    number = _number(environ, name)
    if number is not None and not 1 <= number <= most:
        raise ValueError(f"{name} must be from 1 to {most}, got {number}")
    return default if number is None else number


def _flag(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = environ.get(name, "").strip().lower()
    if not text:
        return default
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{name} must be on or off, got {text!r}")
