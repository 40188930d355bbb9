"""Reads a page of metrics with the parsers of the Prometheus project, which are strict.

Prints what was found as JSON: for each family its type, its samples and the names of their labels.
The two formats must tell the same.
"""

import json
import sys
import urllib.request

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client import parser as text

# What a Prometheus server asks with, in short.
PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"


def fetch(url, accept):
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.headers["Content-Type"], answer.read().decode("utf-8", "strict")


def samples(families):
    return sorted(
        (sample.name, sorted(sample.labels.items()))
        for family in families
        for sample in family.samples
    )


def main(url):
    kind, page = fetch(url, PROMETHEUS)
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8", kind
    families = list(openmetrics.text_string_to_metric_families(page))
    for accept in ["", "*/*", "text/plain", "application/openmetrics-text;q=0, text/plain"]:
        kind, older = fetch(url, accept)
        assert kind == "text/plain; version=0.0.4; charset=utf-8", (accept, kind)
    of_older = list(text.text_string_to_metric_families(older))
    assert samples(families) == samples(of_older), "the formats differ"
    assert all(family.type != "unknown" for family in of_older), older
    found = {
        family.name: {
            "type": family.type,
            "help": family.documentation,
            "samples": len(family.samples),
            "labels": sorted({label for sample in family.samples for label in sample.labels}),
        }
        for family in families
    }
    print(json.dumps(found))


main(sys.argv[1])
