"""Python client of a oneContainer gateway.

from onecontainer.client import Client

with Client("127.0.0.1:50051") as client:
    client.services.wait_ready("cat-classifier")
    print(client.ai.predict("cat-classifier", Path("cat.jpg"), top_k=3))

`AsyncClient` is the same for asyncio. Errors are those of `onecontainer.errors`. Answers are the contract's own messages.
"""

from onecontainer.client.aio import AsyncClient
from onecontainer.client.calls import RetryPolicy
from onecontainer.client.channel import DEFAULT_ADDRESS, Tls
from onecontainer.client.jobs import AsyncJob, create_request, job_error, job_state
from onecontainer.client.media import transcode_request
from onecontainer.client.names import job_options
from onecontainer.client.sync import Client, Job
from onecontainer.client.values import column_type, from_value, to_value

__all__ = [
    "DEFAULT_ADDRESS",
    "AsyncClient",
    "AsyncJob",
    "Client",
    "Job",
    "RetryPolicy",
    "Tls",
    "column_type",
    "create_request",
    "from_value",
    "job_error",
    "job_options",
    "job_state",
    "to_value",
    "transcode_request",
]
