"""A word to somebody where a scheduled run needs a look: refused, stopped, drifted, failed.

`schedule.notify` names an environment variable of the worker that holds a webhook's address (Slack,
Teams, a pager, a server of your own): an address is a secret. The message goes through Prefect's
own notification block, as `{"text": …}`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect.blocks.notifications import CustomWebhookNotificationBlock

from flows.children.processes import redact
from infalign.errors import InputError
from infalign.settings.params import load_params

QUIET = ("Completed", "Skipped", "Suspended", "Cancelled")
LONGEST = 3000  # characters of a message


async def notify(flow: Any, flow_run: Any, state: Any) -> None:
    """A hook of a flow's end: say state and message; what goes wrong is one line, no failure."""
    if state.name in QUIET:
        return
    root = Path(str(flow_run.parameters.get("root", "."))).resolve()
    try:
        variable = load_params(root / "params.yaml").schedule.notify
    except InputError:
        return  # the run itself has said so
    if variable is None:
        return
    address = os.environ.get(variable)
    if not address:
        print(f"schedule.notify: {variable} is not set where the worker runs.", flush=True)
        return
    words = f"infalign {flow.name}: {state.name}. {redact(state.message or '')}"[:LONGEST]
    try:
        block: Any = CustomWebhookNotificationBlock.model_validate(
            {
                "name": "infalign",
                "url": address,
                "json_data": {"text": "{{body}}"},
                "allow_private_urls": True,
            }
        )
        await block.notify(body=words)
    except Exception as error:  # of the network, of the address, of Prefect
        print(f"schedule.notify: not delivered ({type(error).__name__}).", flush=True)
