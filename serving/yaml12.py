"""YAML as people mean it: the booleans of YAML 1.2 only, no key twice, and text that can be stored.

PyYAML follows YAML 1.1, in which the key `on` is the boolean true and `no` is false, and it lets a second
`weights:` silently replace the first. The escapes `\\0` and `\\ud800` it takes for characters, which no name of a file
and no manifest can hold.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

#: The null character, and halves of surrogate pairs.
_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")


def _fault(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Loader(yaml.SafeLoader):
    """SafeLoader without the booleans of YAML 1.1 (`on`, `off`, `yes`, `no`), refusing duplicate keys and bad text."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # what parses numbers, times and tagged values raises what it likes
            raise _fault(node, f"no usable {node.tag.rpartition(':')[2]}: {error}") from error

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        if _UNUSABLE.search(text):
            raise _fault(node, f"{text!r} holds the null character or half of a surrogate pair")
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key_node, yaml.ScalarNode):
                key = self.construct_object(key_node)
                if key in seen:
                    raise _fault(key_node, f"the key {key!r} occurs twice")
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
# No setting is bytes, and as text they could hold what `construct_scalar` refuses.
_Loader.yaml_constructors = {
    tag: build for tag, build in yaml.SafeLoader.yaml_constructors.items() if tag != "tag:yaml.org,2002:binary"
}


def load(text: str) -> Any:
    """The one document in `text`. Raises `yaml.YAMLError`."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: makes plain values only
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
