"""xray.html: one page that needs nothing but itself, beside xray.json and the figures it shows."""
import base64
import html
import json
import os
from pathlib import Path

from minires.errors import UserError
from minires.files import write_atomically
from minires.study.xray.prose import heading, key_table, sections
from minires.study.xray.quote import MISSING, Quotes
from minires.study.xray.style import STYLE

PAGE, NUMBERS = "xray.html", "xray.json"


def require_folder(folder):
    """UserError unless the folder of a page is there, or can be made; nothing is made yet."""
    place = Path(folder).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise _unwritable(folder, f"{place} is {'not writable' if place.is_dir() else 'no folder'}")


def write_xray(report, folder):
    """Write the report of `xray` to `folder`: xray.json, the figures, and last xray.html. Returns the page's path.

    UserError when the folder cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / NUMBERS, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
        page = render(report, folder)
        write_atomically(folder / PAGE, page.encode())
    except OSError as error:
        raise _unwritable(folder, error.strerror) from error
    return folder / PAGE


def _unwritable(folder, why):
    return UserError(f"the X-ray cannot be written to {folder} ({why}): choose another --out")


def render(report, folder):
    """The page as text; its figures are drawn into `folder`."""
    say = Quotes(report)
    content = []
    for section in sections(report, say):
        content.append(f"<section>\n<h2>{html.escape(section.title)}</h2>")
        content += [f"<p>{paragraph}</p>" for paragraph in section.paragraphs]
        if section.figure is not None:
            name, draw = section.figure
            draw(folder / name)
            content.append(_figure(folder / name, section.title))
        content.append("</section>")
    content += [_table(network, index, say) for index, network in enumerate(report["networks"])]
    title, lead = heading(report, say)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n"
            f'<p class="lead">{lead}</p>\n{key_table(report, say)}\n' + "\n".join(content) + "\n</main>\n</body>\n</html>\n")


def _figure(path, title):
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{data}"></figure>'


def _table(network, index, say):
    """Every block of a network at its last moment, folded away."""
    last = len(network["moments"]) - 1
    moment = network["moments"][last]
    where = f"networks.{index}.moments.{last}"
    cuts = {(cut["block"], cut["part"]): place for place, cut in enumerate(moment["lesions"]["lesions"])}
    columns = ["block", "|dL/dx|", "identity", "branch", "cosine", "identity's share", "effective rank", "F / S",
               "loss, no branch", "loss, no shortcut"]
    rows = []
    for place, block in enumerate(moment["blocks"]):
        cells = [f"<th>{html.escape(block['block'])}</th>"]
        keys = [f"blocks.{place}.{key}" for key in ("whole", "identity", "branch", "cosine", "share")]
        keys += [f"branches.{place}.effective_rank", f"branches.{place}.ratio"]
        keys += [f"lesions.lesions.{cuts[block['block'], part]}.change" if (block["block"], part) in cuts else None
                 for part in ("branch", "shortcut")]
        for key in keys:
            signed = key is not None and key.endswith("change")
            quoted = MISSING if key is None else say.number(f"{where}.{key}", "signed" if signed else "short")
            cells.append(f"<td>{quoted}</td>")
        rows.append("<tr>" + "".join(cells) + "</tr>")
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    return (f"<details>\n<summary>{html.escape(network['name'])}, {html.escape(moment['label'])}: every block</summary>\n"
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n' + "\n".join(rows)
            + "\n</tbody></table></div>\n</details>")
