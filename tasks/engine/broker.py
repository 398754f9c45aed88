"""How Celery is set up; the reasons stand in docs/decisions."""

from __future__ import annotations

from typing import Any

from kombu import Queue

from tasks import registry
from tenants.settings import Settings


def configuration(current: Settings) -> dict[str, Any]:
    """Celery's settings for an installation."""
    return {
        "broker_url": current.redis.broker_url or current.redis.worker_address,
        "broker_transport": "tasks.engine.transport:Transport",
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "ack_emulation": False,
        },
        "result_backend": current.redis.result_address,
        "result_backend_transport_options": {"socket_timeout": 1, "socket_connect_timeout": 1},
        "redis_socket_timeout": 1.0,
        "redis_socket_connect_timeout": 1.0,
        "redis_retry_on_timeout": False,
        "result_expires": int(current.redis.result_days * 86_400),
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_create_missing_queues": False,
        "task_default_queue": registry.queues()[0],
        "task_queues": [Queue(name, routing_key=name) for name in registry.queues()],
        "task_track_started": False,
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": current.worker.prefetch_multiplier,
        "worker_concurrency": current.worker.concurrency,
        "worker_max_tasks_per_child": current.worker.max_tasks_per_child,
        "worker_max_memory_per_child": current.worker.max_memory_per_child_kib,
        "worker_hijack_root_logger": False,
        "worker_soft_shutdown_timeout": current.worker.grace_seconds,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "beat_scheduler": "tasks.dispatcher:Scheduler",
        "beat_max_loop_interval": 1,
        "timezone": "UTC",
    }
