"""Move the flat layout into rooms under one import name. Run in the root of a clean checkout."""
import ast, os, re, subprocess, sys
from pathlib import Path
HERE = Path(__file__).resolve().parent

ROOT = Path.cwd()
RENAMES = (HERE / "moves.txt")

def sh(*a): return subprocess.run(a, check=True, capture_output=True, text=True).stdout

moves = {}
for line in (RENAMES.read_text() + (HERE / "moves_tests.txt").read_text()).splitlines():
    line = line.split("#")[0].strip()
    if not line: continue
    old, new = line.split()
    moves[old] = new

tracked = sh("git", "ls-files").splitlines()
py = [f for f in tracked if f.endswith(".py")]
for old in moves:
    if old not in tracked: sys.exit(f"not tracked: {old}")
def dotted(path): 
    p = path[:-3].replace("/", ".")
    return p[:-9] if p.endswith(".__init__") else p
def is_product(path): return path.split("/")[0] in ("norm", "trainer", "service")
modmap, packages = {}, set()
for f in py:
    top = f.split("/")[0]
    if top not in ("norm", "trainer", "service", "tests", "benchmarks"): continue
    new = moves.get(f, f)
    if new == "-": continue
    old_mod, new_mod = dotted(f), dotted(new)
    if is_product(f): new_mod = "syncnorm." + new_mod
    modmap[old_mod] = new_mod
    if f.endswith("__init__.py"): packages.add(old_mod)
# old packages that vanish as packages still map by room
EXTRA = {"service.steps": "syncnorm.service.reconciler", "service.commands": "syncnorm.service.cli"}
modmap.update(EXTRA)
modmap["trainer.words"] = "syncnorm.trainer.contract.text"
for _t in ("tests", "tests.trainer", "tests.norm"): modmap.setdefault(_t, _t)

def rewrite_imports(text, where):
    stub = where.endswith('.pyi')
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    edits = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            m = node.module
            if m not in modmap and m.split(".")[0] not in ("norm", "trainer", "service", "tests"): continue
            if m not in modmap: print("unknown module", m, where); continue
            groups = {}
            for a in node.names:
                full = f"{m}.{a.name}"
                if full in modmap:
                    pkg, stem = modmap[full].rsplit(".", 1)
                    asname = a.asname or (a.name if stem != a.name else None)
                    groups.setdefault(pkg, []).append((stem, asname))
                else:
                    groups.setdefault(modmap[m], []).append((a.name, a.asname))
            indent = lines[node.lineno - 1][: node.col_offset]
            last = lines[node.end_lineno - 1]
            comment = re.search(r"(\s*#.*)$", last[node.end_col_offset:] if node.lineno == node.end_lineno else last.rstrip("\n"))
            out = []
            for pkg, names in groups.items():
                body = ", ".join(n if not s or (s == n and not stub) else f"{n} as {s}" for n, s in names)
                one = f"{indent}from {pkg} import {body}"
                if len(one) > 118 and len(names) > 1:
                    inner = "".join(f"{indent}    {n if not s or (s == n and not stub) else f'{n} as {s}'},\n" for n, s in names)
                    one = f"{indent}from {pkg} import (\n{inner}{indent})"
                out.append(one)
            textnew = "\n".join(out) + (comment.group(1) if comment else "") + "\n"
            edits.append((node.lineno - 1, node.end_lineno, textnew))
        elif isinstance(node, ast.Import):
            names = [a for a in node.names if a.name.split(".")[0] in ("norm", "trainer", "service")]
            if not names: continue
            assert len(node.names) == 1, (where, node.lineno)
            a = names[0]; new = modmap[a.name]
            indent = lines[node.lineno - 1][: node.col_offset]
            if a.asname: one = f"{indent}import {new} as {a.asname}\n"
            elif "." not in a.name: one = f"{indent}from syncnorm import {a.name}\n"
            else: print("plain dotted import", where, a.name); one = f"{indent}import {new}\n"
            edits.append((node.lineno - 1, node.end_lineno, one))
    for start, end, new in sorted(edits, reverse=True):
        lines[start:end] = [new]
    return "".join(lines)

AMBIGUOUS = {"norm.group", "norm.weight", "norm.frozen", "norm.fixup", "norm.recompute", "norm.noisy", "norm.groups", "norm.conversion.json", "trainer.fit", "trainer.callbacks",
             "norm.evo", "norm.ghost", "norm", "trainer", "service", "tests"}
names = sorted((m for m in modmap if m not in AMBIGUOUS and not m.startswith("benchmarks") and m.count(".")), key=len, reverse=True)
DOT = re.compile(r"(?<![\w./-])(" + "|".join(map(re.escape, names)) + r")(?![\w/-])(?!\.(?:json|yaml|db|sock)\b)")
paths = sorted((f for f in moves if moves[f] != "-"), key=len, reverse=True)
PATH = re.compile(r"(?<![\w/])(" + "|".join(map(re.escape, paths)) + r")(?![\w])")
def rewrite_text(text):
    text = PATH.sub(lambda m: moves[m.group(1)], text)
    return DOT.sub(lambda m: modmap[m.group(1)], text)

def rewrite_code_strings(text):
    """Dotted names and paths within strings and comments; code itself is left alone."""
    import io, tokenize
    out, lines = [], text.splitlines(keepends=True)
    spans = []
    fdepth = 0
    for tok in tokenize.generate_tokens(io.StringIO(text).readline):
        if tok.type in (tokenize.STRING, tokenize.COMMENT):
            spans.append((tok.start, tok.end))
    for (r1, c1), (r2, c2) in reversed(spans):
        if r1 == r2:
            l = lines[r1 - 1]
            lines[r1 - 1] = l[:c1] + rewrite_text(l[c1:c2]) + l[c2:]
        else:
            block = "".join(lines[r1 - 1 : r2])
            first, end = c1, len(block) - (len(lines[r2 - 1]) - c2)
            lines[r1 - 1 : r2] = (block[:first] + rewrite_text(block[first:end]) + block[end:]).splitlines(keepends=True)
            # keep the number of lines
    return "".join(lines)

for f in tracked:
    if f in ("LICENSE", "CHANGELOG.md") or f.endswith((".png", ".json")): continue
    p = ROOT / f
    if p.is_symlink(): continue
    text = p.read_text()
    new = text
    if f.endswith(".pyi"):
        new = rewrite_imports(new, f)
    elif f.endswith(".py"):
        new = rewrite_imports(new, f)
        new = rewrite_code_strings(new)
    else:
        new = rewrite_text(new)
    if new != text: p.write_text(new)

BARE = {"pool": "tests.helpers.norm.pool", "models": "tests.helpers.norm.models", "splits": "tests.helpers.norm.splits"}
for f in tracked:
    if f.startswith("tests/norm/") and f.endswith(".py"):
        p = ROOT / f; t = p.read_text()
        for bare, full in BARE.items(): t = re.sub(rf"^(\s*)from {bare} import", rf"\1from {full} import", t, flags=re.M)
        p.write_text(t)
# MERGED: words into text
_w = (ROOT / "trainer/words.py").read_text().split("from collections.abc import Sequence\n", 1)[1]
_t = (ROOT / "trainer/text.py"); _x = _t.read_text().replace("from collections.abc import Mapping\n", "from collections.abc import Mapping, Sequence\n"); _t.write_text(_x.rstrip("\n") + "\n" + _w)
for old, new in moves.items():
    if new == "-": sh("git", "rm", "-qf", old); continue
    (ROOT / new).parent.mkdir(parents=True, exist_ok=True)
    sh("git", "mv", old, new)
print("moved", len(moves))
