"""Called by after.py before the overlay is copied: pages from the sections of the rewritten service/README.md."""
from pathlib import Path
R = Path.cwd(); O = (HERE / "overlay")
t = (R / "service/README.md").read_text()
def section(title):
    a = t.index(f"## {title}\n"); b = t.find("\n## ", a + 4)
    return t[a + len(f"## {title}\n"):b].strip("\n") + "\n"
def write(path, text):
    p = R / path; p.parent.mkdir(parents=True, exist_ok=True); p.write_text(text)
s = section("Settings"); i = s.index("| variable |")
write("docs/reference/settings.md", (O / "docs/reference/settings.md").read_text().split("| variable |")[0] + s[i:] + "\n## What is kept, and for how long\n\n" + section("What is kept, and for how long"))
states = t[t.index("```mermaid"):t.index("The table is `ARROWS`")]
life = (O / "docs/explanation/life-of-a-job.md").read_text()
a = life.index("```mermaid"); b = life.index("The table is `ARROWS`")
d = section("What is decided how"); bad = d[d.index("- **One bad item**"):]
for name in ("- **Dead**", "- **Success**"):
    if name in bad: bad = bad[:bad.index(name)]
besides = "Any unfinished job can also go to `failed` (reason `internal`), or to `cancelled` where you had asked for that, once the\nservice could not handle it three times in a row.\n\n"
h = life.index("## Elastic jobs")
known = {line.split("**")[1] for line in life.splitlines() if line.startswith("- **")}
items, keep = [], []
for block in ("\n" + d).split("\n- **")[1:]:
    title = block.split("**")[0]
    if title in ("One bad item", "A tick fails", "The lease is renewed while a tick acts", "A standby replica is ready", "A launch that can't be made", "SIGTERM", "A storage that isn't mounted is away.", "Answers of Ray and MLflow", "A database that can't be written to"):
        items.append("- **" + block.rstrip("\n"))
life = life[:a] + states.split("Besides, any")[0].rstrip("\n") + "\n\n" + besides + life[b:h] + "## When something is odd\n\n" + "\n".join(items) + "\n\n" + life[h:]
write("docs/explanation/life-of-a-job.md", life)
write("docs/explanation/security.md", "# Security\n\nThis page tells you what protects the service: from web pages, from the code in jobs, and from slow clients. It also tells\nyou what it can't protect, so that you can.\n\n" + section("Code, secrets, addresses") + "\n## Who did it\n\n" + section("Who did it"))
write("docs/reference/verbs-and-plans.md", "# Verbs, keys and plans\n\nHow the API answers when you ask twice, ask for many jobs, or submit a job that can't run.\n\n" + section("Verbs, keys and plans"))
w = section("Webhooks"); wh = (O / "docs/reference/webhooks.md").read_text()
tail = w[w.index("Standard Webhooks 1.0"):]
write("docs/reference/webhooks.md", wh[:wh.index("Events of one receiver come in order.")].rstrip("\n") + "\n\nEach event is sent in order until your receiver answers with 2xx: after 1, 2, 4 … 300 s, or when `Retry-After` says, for\nthree days. An event that your receiver refuses (4xx except 408, 425 and 429) is left out, logged and counted in\n`syncnorm_webhook_events_total`. After 410 the receiver is left alone until the service starts again. Redirects are not\nfollowed, and a slow receiver delays no other.\n\n" + wh[wh.index("Events of one receiver come in order."):])
