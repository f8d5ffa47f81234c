"""The demo model answers the first request of the README as the README says."""

import json
import re
import urllib.request

from shared.settings.model_settings import DEMO_MODEL
from tests.conftest import ROOT, Service


def test_the_first_request_of_the_readme_is_answered_as_it_says(service: Service) -> None:
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"curl http://127.0.0.1:8000(\S+).*?-d '(.*?)'", readme, re.DOTALL)
    said = re.search(r"The answer is `(.*?)`", readme)
    assert command is not None and said is not None
    # The service of the tests has the demo model without its sampling defaults.
    body = json.loads(command[2]) | {"temperature": DEMO_MODEL.sampling.temperature}
    request = urllib.request.Request(
        service.url + command[1], json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for _ in range(2):
        with urllib.request.urlopen(request, timeout=60) as response:
            (choice,) = json.load(response)["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (said[1], "stop")
