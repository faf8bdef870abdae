"""Write the documents of the study into texts/ beside this file, one JSON line each: python prepare.py CORPORA.

CORPORA is a folder with wikitext-2/valid.txt, exllamav2-cal/code.utf8 and c4.utf8, and gsm8k/test.jsonl.
"""

import json
import re
import sys
from pathlib import Path

CORPORA = Path(sys.argv[1])
OUT = Path(__file__).parent / "texts"


def write(domain: str, rows: list[dict]) -> None:
    """Write the documents of a domain."""
    folder = OUT / domain
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{domain}: {len(rows)} documents, {sum(len(json.dumps(row)) for row in rows)} characters")


def chunks(text: str, pattern: str, size: int) -> list[dict]:
    """Documents of at least `size` characters, cut where the pattern matches."""
    documents, current = [], ""
    for part in re.split(pattern, text):
        current += part
        if len(current) >= size:
            documents.append({"text": current})
            current = ""
    return documents


wiki = (CORPORA / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")
articles = [part for part in re.split(r"(?m)^(?= = [^=])", wiki) if len(part) > 1000]
write("wikitext", [{"text": part[:6000]} for part in articles])

exllama = CORPORA / "exllamav2-cal"
# three line feeds stand between the files that code.utf8 is joined from, and within some of them
write("code", chunks((exllama / "code.utf8").read_text(encoding="utf-8"), r"(?<=\n\n\n)", 800))
# c4.utf8: a page is a line
pages = (exllama / "c4.utf8").read_text(encoding="utf-8").split("\n")
write("c4", [{"text": page} for page in pages if len(page) > 500])

chats = []
with (CORPORA / "gsm8k" / "test.jsonl").open(encoding="utf-8") as file:
    for row in map(json.loads, file):
        turns = {"user": row["question"], "assistant": row["answer"]}
        chats.append({"messages": [{"role": role, "content": content} for role, content in turns.items()]})
write("chat", chats[:400])
