"""Flower's task protocol: acquire a task, take its input, give its output.

The only module, with her2_client.executor and her2_server.superlink, that touches functions of
Flower which are not its public interface; tests/federation pins them. Both roles run their app
in a process of their own that stays alive, instead of a fresh process a message:

1. ``TaskSource.acquire`` asks the SuperNode or SuperLink (in process isolation) for a task,
   proving with the shared secret that it may.
2. ``AcquiredTask`` carries a token that speaks for this one task; ``heartbeat`` keeps it.
3. The caller takes the input, runs the installed app, pushes the reply and the output, and
   closes the task, also when the app failed.

Bundle content that arrives with the input is handed on as bytes to be hashed; nothing unpacks it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto, run_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

TaskType = Literal["flwr-clientapp", "flwr-serverapp"]

HEARTBEAT_SECONDS: Final = 10.0
"""Flower gives a task up after 60 s of silence; a beat of 10 s forgives five lost ones."""

FLOWER_ENVIRONMENT: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",  # no call home from a hospital
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else `uv sync` runs for each run
}
"""Set for every Flower process that her2-map starts."""


RETRY_SECONDS: Final = 60.0
"""How long a request is repeated that has no answer: as long as Flower holds a task whose heartbeat
stays away."""


def own_answer(error: httpx.HTTPStatusError) -> bool:
    """Is an HTTP error the answer of Flower's own application to this request?

    It numbers its errors and refuses a token with 401 or 403. All else is a transient error, of its
    database (500) or of what lies between (404 or 502 of a proxy that is being edited).
    """
    answer = error.response
    if answer.is_server_error:
        return False
    return FlowerError.from_json(answer.text) is not None or answer.status_code in {401, 403, 413}


def retry_invoker(max_seconds: float = RETRY_SECONDS) -> RetryInvoker:
    """Retries lost connections and errors that are not Flower's own answer for ``max_seconds``,
    then lets the error out.

    Flower's own invoker retries for ever, but ends the process on a refused token and gives up at
    once on a 500; a long-lived process must decide for itself.
    """

    def give_up(error: Exception) -> bool:
        return isinstance(error, httpx.HTTPStatusError) and own_answer(error)

    return RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=0.2, max_delay=5),
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=max_seconds,
        should_giveup=give_up,
    )


@dataclass(frozen=True)
class Endpoint:
    """Where tasks come from: host:port, and the root certificates (None: plain HTTP, loopback)."""

    address: str
    root_certificates: bytes | None

    def client(self, *interceptors: Any, max_seconds: float = RETRY_SECONDS) -> RuntimeHttpClient:
        """A client of the Runtime API at this endpoint."""
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.root_certificates is None,
            root_certificates=self.root_certificates,
            interceptors=interceptors,
            retry_invoker=retry_invoker(max_seconds),
        )


class TaskSource:
    """Acquires tasks of one type with the shared secret (the raw bytes of its file)."""

    def __init__(self, endpoint: Endpoint, secret: bytes, task_type: TaskType) -> None:
        self.endpoint = endpoint
        self.task_type = task_type
        self._client = endpoint.client(
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=secret,
                protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"}),
            ),
            max_seconds=1.0,
        )

    def acquire(self) -> str | None:
        """The token of the oldest waiting task, or None.

        Raises:
            httpx.HTTPError: the endpoint does not answer or refuses the secret.
        """
        answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[self.task_type]))
        return answer.token if answer.HasField("task") and answer.token else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


@contextmanager
def open_task(endpoint: Endpoint, token: str, task_type: TaskType) -> Iterator[RuntimeHttpClient]:
    """A client that speaks for one task and keeps it alive until the block ends."""
    client = endpoint.client(
        RuntimeVersionHttpInterceptor(component_name=task_type), RuntimeTokenHttpInterceptor(token)
    )
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except (httpx.HTTPError, ValueError):  # the latter: a page in place of an answer
                continue  # the task's own calls report a connection that stays down

    thread = threading.Thread(target=beat, name="task-heartbeat", daemon=True)
    thread.start()
    try:
        yield client
    finally:
        stop.set()
        thread.join(timeout=1.0)
        client.close()


@dataclass(frozen=True)
class ClientTask:
    """The input of a ClientApp task."""

    message: Message
    context: Context
    bundle: bytes


def take_client_task(client: RuntimeHttpClient, abandoned: threading.Event) -> ClientTask:
    """The message for the ClientApp, its context, and the bundle's bytes (to be hashed only).

    The SuperNode hands out a task as soon as it knows of a message, and then fetches the message's
    content. If the run ends meanwhile, the content never comes and nobody says so; setting
    ``abandoned`` ends the wait. Asking again after 0.1 s, where Flower's own loop waits 1 s and
    then twice as long each time, takes seconds off every round.

    Raises:
        ObjectPullError: the content does not come, or ``abandoned`` was set.
    """
    answer = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id = answer.task_id
    TaskIdentity.run_id = answer.run.run_id
    TaskIdentity.node_id = answer.context.node_id
    context = context_from_proto(answer.context)
    pulled = client.PullMessages(PullAppMessagesRequest())
    if not pulled.messages_list:
        raise ObjectPullError("message", "the task has no message")
    tree = pulled.message_object_trees[0]
    node = Node(node_id=context.node_id)
    pull = make_pull_object_fn_protobuf(client.PullObject, node, context.run_id)

    def pull_unless_abandoned(object_id: str) -> bytes:
        if abandoned.is_set():
            raise ObjectPullError(object_id, "abandoned")
        content: bytes = pull(object_id)
        return content

    message = pull_and_inflate_object_from_tree(
        tree,
        pull_unless_abandoned,
        make_confirm_message_received_fn_protobuf(
            client.ConfirmMessageReceived, node, context.run_id
        ),
        return_type=Message,
        max_tries_per_object=None,
        initial_backoff=0.1,
        backoff_cap=1.0,
    )
    # The content does not carry its own id.
    message.metadata.__dict__["_message_id"] = tree.object_id
    return ClientTask(message, context, fab_from_proto(answer.fab).content)


def give_client_reply(
    client: RuntimeHttpClient, task: ClientTask, reply: Message, *, completed: bool
) -> None:
    """Hand the reply and the end of the task to the SuperNode."""
    push_message(client, reply, task.context)
    status = SubStatus.COMPLETED if completed else SubStatus.FAILED
    push_task_output(client, task.context, status, "")


@dataclass(frozen=True)
class ServerTask:
    """The input of a ServerApp task."""

    run: Run
    context: Context
    bundle: bytes


def take_server_task(client: RuntimeHttpClient) -> ServerTask:
    """The run that the ServerApp is to conduct."""
    answer = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id = answer.task_id
    TaskIdentity.run_id = answer.run.run_id
    TaskIdentity.node_id = answer.context.node_id
    return ServerTask(
        run_from_proto(answer.run),
        context_from_proto(answer.context),
        fab_from_proto(answer.fab).content,
    )


def end_server_task(client: RuntimeHttpClient, *, completed: bool, details: str = "") -> None:
    """Tell the SuperLink how the run ended."""
    status = SubStatus.COMPLETED if completed else SubStatus.FAILED
    client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))


def read_secret(path: Path) -> bytes:
    """The shared secret as Flower reads it: the file's exact bytes, a newline included."""
    return path.read_bytes()
