"""Print the operators of the installed torch, for the validator's table of the operators of old engines.

It needs only torch, and also runs on old Python versions::

    /usr/bin/python3 benchmarks/list_operators.py > gap_bioimage/validation/archive/operators_1_13.txt
"""

HEADER = """\
# Operators of torch {version}, as torch._C._jit_get_all_schemas() lists them: one per line, followed by the ways to
# call it, each as its number of positional arguments (* for any number) and its keywords. Made by
# python benchmarks/list_operators.py
"""


def list_operators() -> str:
    """Return the table for this torch."""
    import torch

    found: dict[str, set[tuple[str, frozenset[str]]]] = {}
    for schema in torch._C._jit_get_all_schemas():
        keywords = frozenset(argument.name for argument in schema.arguments if argument.kwarg_only)
        is_vararg = "..." in str(schema).split("->")[0]
        count = "*" if is_vararg else str(len(schema.arguments) - len(keywords))
        found.setdefault(schema.name, set()).add((count, keywords))
    lines = [
        " ".join([name, *sorted("+".join([count, *sorted(keywords)]) for count, keywords in found[name])])
        for name in sorted(found)
    ]
    return HEADER.format(version=torch.__version__) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(list_operators(), end="")
