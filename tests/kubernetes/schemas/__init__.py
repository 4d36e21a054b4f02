"""Strict schemas of the kinds that the manifests name, from the projects' own CRDs: an unknown field is an error.

Each file beside this one has the facts of one release: fields, types, and values. Where a CRD embeds a type of
Kubernetes, the file has its name (`"kubernetes": "Job"`), and Kubernetes' own schema of a version checks the value.
Made with

    python -m tests.kubernetes.schemas PROJECT VERSION CRD.yaml... > tests/kubernetes/schemas/PROJECT-VERSION.json

which reads the CRDs of a release. Rules in CEL are not included; a real API server checks them.
"""

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = ("1.31", "1.34")
PROJECTS = {"jobset": "kubernetes-sigs/jobset", "kueue": "kubernetes-sigs/kueue", "trainer": "kubeflow/trainer",
            "volcano": "volcano-sh/volcano"}  # fmt: skip
CURRENT = {"jobset": "v0.12.0", "kueue": "v0.19.2", "trainer": "v2.3.0", "volcano": "v1.15.1"}
BEFORE = {"jobset": "v0.11.1", "kueue": "v0.18.6", "trainer": "v2.2.1", "volcano": "v1.14.4"}
_FACTS = ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required",
          "minProperties", "maxProperties")  # fmt: skip
_INT_OR_STRING = {"type": ["integer", "string"]}


@cache
def load(versions: tuple[tuple[str, str], ...]) -> dict[str, dict[str, Any]]:
    """The schemas of one release of each project, by `GROUP/VERSION KIND`."""
    found: dict[str, dict[str, Any]] = {}
    for project, version in versions:
        found |= json.loads((Path(__file__).parent / f"{project}-{version}.json").read_text())["kinds"]
    return found


def check(document: dict[str, Any], versions: dict[str, str], kubernetes: str) -> list[str]:
    """The mistakes in an object, by releases of the projects and a version of Kubernetes."""
    schema = load(tuple(sorted(versions.items()))).get(f"{document['apiVersion']} {document['kind']}")
    if schema is None:
        return [f"{document['apiVersion']} {document['kind']}: no schema"]
    errors = jsonschema.Draft202012Validator(schema).iter_errors({k: v for k, v in document.items() if k != "metadata"})
    found = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    known = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    for name, part in [("metadata", known), *_embedded(document, schema)]:
        try:
            kubernetes_validate.validate(part, kubernetes, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{name}: {'.'.join(map(str, error.path))}: {error.message}")
    return found


def _embedded(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Kubernetes objects embedded in a value, each complete, so that Kubernetes' validator knows them."""
    if kind := schema.get("kubernetes"):
        yield path, _wrap(kind, value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _embedded(part, schema.get("properties", {}).get(key, {}), f"{path}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _embedded(part, schema.get("items", {}), f"{path}[{index}]")


def _wrap(kind: str, value: Any) -> dict[str, Any]:
    named = copy.deepcopy(value)
    if kind == "JobTemplate":
        return {"apiVersion": "batch/v1", "kind": "Job", **named}
    return {"apiVersion": "v1", "kind": "Pod", **named}


def reduce_crd(schema: dict[str, Any], top: bool = True) -> dict[str, Any]:
    """The facts of a CRD's schema; for Kubernetes' own types only the name."""
    properties = schema.get("properties", {})
    within = properties.get("spec", {}).get("properties", {})
    if {"containers", "tolerations"} <= within.keys():
        return {"kubernetes": "PodTemplate"}
    if {"backoffLimit", "completions"} <= within.keys() and not top:
        return {"kubernetes": "JobTemplate"}
    reduced = {fact: schema[fact] for fact in _FACTS if fact in schema}
    if schema.get("x-kubernetes-int-or-string"):
        reduced = {**{k: v for k, v in reduced.items() if k != "pattern"}, **_INT_OR_STRING}
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return reduced
    if properties:
        skipped = {"metadata", "status"} if top else set()
        reduced["properties"] = {
            name: reduce_crd(part, top=False) for name, part in properties.items() if name not in skipped
        }
        reduced["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        reduced["additionalProperties"] = reduce_crd(schema["additionalProperties"], top=False)
    if "items" in schema:
        reduced["items"] = reduce_crd(schema["items"], top=False)
    return reduced
