"""What `make docs` makes of the pages and docstrings that it builds from.

mkdocs.yml names this file as a hook and as an extension of Griffe, which reads
the docstrings. Neither changes a file.
"""

import re
import textwrap

import griffe

import efficientnetv2

_NAMES = "|".join(efficientnetv2.__all__)
_HERE = "<!-- The site inserts the reference here. -->"
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_OUTSIDE = re.compile(r"(?<!!)\[([^\]\n]+)\]\(\.\./([^)#\s]+)[^)\s]*\)")
_PAGE = re.compile(r"\[(\w+\.md)\]\(\1")
_CODE = re.compile(r"(?<=<code>)(?<!</span><code>)[^<]+(?=</code>)")
_PUBLIC = re.compile(rf"(?<!\[)`efficientnetv2\.({_NAMES})(?:\([^`\n]*\))?`")
_SIBLING = re.compile(rf"`(?:efficientnetv2\.)?({_NAMES})`")
# Two arguments with one description.
_PAIR = re.compile(r"^( +)(\w+), (\w+): (.+)$", re.MULTILINE)
# Not the beginning of bold text.
_POWER = re.compile(r"(?<=\w)\*\*(?=\w)")
_RETURNS = re.compile(r"^Returns:\n {4}", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:\n\n((?: {4}.*(?:\n|\Z)|\n)+)", re.MULTILINE)


def on_page_markdown(markdown: str, files, **_) -> str:
    """Returns what becomes of a page, except of its blocks of code.

    Links out of docs/ become text, those to a page show its title, public
    names link to the reference, and the Python API gets its reference.
    """

    def titled(link: re.Match) -> str:
        target = files.get_file_from_path(link[1])
        title = target.content_string.partition("\n")[0].removeprefix("# ")
        return f"[{title}]({link[1]}"

    parts = _FENCE.split(markdown)
    for k in range(0, len(parts), 2):
        parts[k] = _OUTSIDE.sub(_as_text, parts[k])
        parts[k] = _PAGE.sub(titled, parts[k])
        parts[k] = _PUBLIC.sub(r"[\g<0>][efficientnetv2.\1]", parts[k])
    blocks = [f"::: efficientnetv2.{name}" for name in efficientnetv2.__all__]
    reference = "\n\n".join(["## Reference", *blocks])
    return "".join(parts).replace(_HERE, reference)


def _as_text(link: re.Match) -> str:
    """Returns [hparams/base.yaml](...) as code, [the notebooks](...) as text.

    Text is followed by the path, as a reader of the site sees no target.
    """
    text, path = link.groups()
    if f"{path}/".startswith(f"{text}/"):
        return f"`{text}`"
    return f"{text} (`{path}`)"


def on_page_content(html: str, **_) -> str:
    """Lets long names break where a reader expects it, not anywhere."""
    return _CODE.sub(
        lambda code: re.sub(r"([._/=])\b", r"\1<wbr>", code[0]), html
    )


class Docstrings(griffe.Extension):
    """Marks examples as code, and links the public names."""

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        """Lets functions come before modules of the same name.

        So does `efficientnetv2` itself: `train` and `predict` are functions.
        """
        for name in efficientnetv2.__all__:
            public = griffe.Alias(name, pkg.imports[name], parent=pkg)
            pkg.members[name] = public

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            text = _EXAMPLE.sub(_as_block, obj.docstring.value)
            text = _PAIR.sub(r"\1\2: \4\n\1\3: \4", text)
            text = _POWER.sub(r"\*\*", text)
            text = _SIBLING.sub(r"[\g<0>][efficientnetv2.\1]", text)
            if obj.is_function and obj.returns is not None:
                # Else the words before a colon are taken for the type.
                text = _RETURNS.sub(rf"\g<0>{obj.returns}: ", text)
            obj.docstring.value = text


def _as_block(example: re.Match) -> str:
    code = textwrap.dedent(example[1]).strip()
    return f"```python\n{code}\n```\n\n"
