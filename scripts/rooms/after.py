"""What the move needs beyond moves and imports. Run after move.py in the same folder."""
import os, re, subprocess
from pathlib import Path
HERE = Path(__file__).resolve().parent
R = Path.cwd()
def sub(path, *pairs):
    p = R / path; t = p.read_text()
    for a, b in pairs:
        if a not in t: print("NOT FOUND", path, a[:70]); continue
        t = t.replace(a, b)
    p.write_text(t)
s = R / "syncnorm"; s.mkdir(exist_ok=True)
for n in ("norm", "trainer", "service"):
    if not (s / n).is_symlink(): os.symlink(f"../{n}", s / n)
if not (s / "examples").is_symlink(): os.symlink("../examples", s / "examples")
(s / "py.typed").write_text("")
(s / "__init__.py").write_text('''"""Distributed training with normalization across devices: `Client` talks to a service, `norm` is the library of layers.

Importing this loads neither torch nor the service. The three parts lie beside this folder, linked into it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncnorm import norm
    from syncnorm.service.client import Client

__all__ = ["Client", "__version__", "norm"]

try:
    __version__ = version("syncnorm")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "Client":
        return import_module("syncnorm.service.client").Client
    if name == "norm":
        return import_module("syncnorm.norm")
    raise AttributeError(f"module 'syncnorm' has no attribute {name!r}")
''')
DOCS = {
 "norm/layers": "Every normalization as a layer of torch. May import norm.statistics, norm.distributed and norm.backends.",
 "norm/statistics": "Statistics of layers: moments and how they combine, population statistics, snapshots.",
 "norm/distributed": "Exchange between the workers of a process group: collectives, groups, transports and their time-outs.",
 "norm/native": "Kernels in C for CPUs, built at first use where there is a compiler.",
 "norm/conversion": "Turns the normalization of a model into another kind, and back.",
 "norm/auditing": "Findings about the normalization of a model. Named so because `norm.audit` is the function.",
 "norm/folding": "Folds normalization in evaluation into the layers beside it.",
 "trainer/contract": "What the service and the trainer agree on: spec, plan, messages, failures. Knows neither torch nor Lightning.",
 "trainer/storage": "Files on a folder or any fsspec URL: atomic writes, checkpoints' folders, mirrors, and their errors.",
 "trainer/ranks": "What ranks agree on with each other: rendezvous, preflight, stopping, equal replicas.",
 "trainer/reporting": "What a rank tells: logs, progress and metrics to the service and MLflow, without secrets.",
 "trainer/user_code": "The user's package and classes, imported by path.",
 "trainer/training": "Training proper: the module, its optimizer and schedule, its metrics, its checkpoints.",
 "trainer/export": "From the trained model to a certified one: population statistics, formats, certificate, registry.",
 "trainer/worker": "What one rank does from start to end.",
 "trainer/driver": "The process of one attempt: starts the workers, waits, writes result.json last.",
 "service/jobs": "Jobs as values and the decisions about them. Pure: no clock, no database, no network.",
 "service/integrations": "Ports to what lies outside: Ray, MLflow, storage, webhooks, secrets, uploaded code.",
 "service/local": "The embedded Ray and MLflow: their start, their ports and their certain end.",
 "service/telemetry": "What an operator reads: logs and Prometheus metrics.",
 "service/api/resources": "The routes, one file a resource.",
 "service/cli/commands": "The verbs, one file a family.",
 "service/reconciler": "The reconciliation loop: drives every job towards its requested state.",
 "service/cli": "The command line.",
}
for d, doc in DOCS.items():
    p = R / d / "__init__.py"
    if not p.exists() or not p.read_text().strip() or d in ("service/reconciler", "service/cli"):
        p.write_text(f'"""{doc}"""\n')
main = R / "service/cli/__main__.py"
main.write_text('"""`python -m syncnorm.service.cli`."""\n\nfrom syncnorm.service.cli.main import main\n\nmain()\n')
t = (R / "norm/__init__.py").read_text().replace(">>> from norm import", ">>> from syncnorm.norm import"); (R / "norm/__init__.py").write_text(t)
sub("pyproject.toml",
    ('syncnorm = "service.cli:main"', 'syncnorm = "syncnorm.service.cli.main:main"') if 'service.cli:main' in (R/"pyproject.toml").read_text() else ("syncnorm = \"syncnorm.service.cli.main:main\"",)*2,
    ('include = ["norm*", "trainer*", "service*"]', 'include = ["syncnorm*"]'),
    ('packages = ["norm", "service", "trainer"]', 'packages = ["syncnorm"]'),
)
sub("pyproject.toml", ('module = ["trainer.*"]', 'module = ["syncnorm.trainer.*"]'))
p = R / "pyproject.toml"; t = p.read_text()
t = re.sub(r'module = \["syncnorm\.trainer\.contract\.spec".*?\]', 'module = ["syncnorm.trainer.contract.*", "syncnorm.trainer.storage.*"]', t, flags=re.S)
t = t.replace('"service/api/**" = ["B008"]\n"service/cli.py" = ["B008"]', '"service/api/**" = ["B008"]\n"service/cli/**" = ["B008"]').replace('"service/cli/main.py" = ["B008"]', '"service/cli/**" = ["B008"]')
p.write_text(t)
sub("deploy/Dockerfile", ("COPY norm ./norm\nCOPY trainer ./trainer\nCOPY service ./service\n", "COPY norm ./norm\nCOPY trainer ./trainer\nCOPY service ./service\nCOPY examples ./examples\nCOPY syncnorm ./syncnorm\n"))
sub("service/cli/demo.py", ("_ROOT = Path(__file__).resolve().parent.parent\n_EXAMPLE = _ROOT / \"examples\"", "_EXAMPLE = Path(syncnorm.__file__).parent / \"examples\""), ("from rich.console", "import syncnorm\nfrom rich.console"))
sub("service/store/database.py", ('MIGRATIONS = Path(__file__).parent / "migrations"', 'MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"'))
# tests: packages everywhere, one place that knows the root
for d in sorted({p.parent for p in (R / "tests").rglob("*.py")}):
    while d != R:
        if not (d / "__init__.py").exists(): (d / "__init__.py").write_text("")
        d = d.parent
(R / "tests/helpers/__init__.py").write_text('"""What tests share: services, clusters, workers, buckets. No test lies here."""\n')
(R / "tests/helpers/paths.py").write_text('"""Where things lie in the checkout."""\n\nfrom pathlib import Path\n\nROOT = Path(__file__).resolve().parents[2]\nEXAMPLES = ROOT / "examples"\n')
for p in (R / "tests").rglob("*.py"):
    if p.name == "paths.py": continue
    t = p.read_text(); n = t
    n = n.replace("Path(__file__).resolve().parent.parent.parent", "ROOT").replace("Path(__file__).resolve().parents[2]", "ROOT")
    if p.parent == R / "tests": n = n.replace("Path(__file__).resolve().parent.parent", "ROOT")
    n = re.sub(r'^ROOT = ROOT\n', "", n, flags=re.M).replace('ROOT / "examples"', "EXAMPLES")
    if n != t:
        names = [x for x in ("EXAMPLES", "ROOT") if re.search(rf"\b{x}\b", n)]
        names = [x for x in names if not re.search(rf"^{x} = (?!EXAMPLES$)", n, flags=re.M)]
        n = re.sub(r"^EXAMPLES = EXAMPLES\n", "", n, flags=re.M)
        if names:
            line = f"from tests.helpers.paths import {', '.join(names)}\n"
            n = n.replace("from __future__ import annotations\n", "from __future__ import annotations\n\n" + line, 1) if "from __future__" in n else line + n
        p.write_text(n)
sub("service/cli/demo.py", ('"PYTHONPATH": str(_ROOT)', '"PYTHONPATH": str(Path(syncnorm.__file__).resolve().parent.parent)'))
sub("service/local/programs.py", ("_ROOT = Path(__file__).resolve().parent.parent\n", "_ROOT = Path(syncnorm.__file__).resolve().parent.parent\n"), ("from syncnorm.service.integrations", "import syncnorm\nfrom syncnorm.service.integrations"))
sub("tests/service/conftest.py", ('STANDIN = Path(__file__).with_name("standin.py")', 'STANDIN = ROOT / "tests" / "helpers" / "service" / "standin.py"'))
sub("tests/norm/conftest.py", ("import sys\n", ""), ("from pathlib import Path\n", ""), ("sys.path.insert(0, str(Path(__file__).parent))\n", ""))
sub("tests/trainer/contract/test_spec_reader.py", ("EXAMPLES = sorted((EXAMPLES).glob(\"*.yaml\"))", "JOBS = sorted(EXAMPLES.glob(\"*.yaml\"))"), ("from pathlib import Path\n", "from pathlib import Path\n\nfrom tests.helpers.paths import EXAMPLES\n"))
t = (R / "tests/trainer/contract/test_spec_reader.py").read_text(); t = t.replace('parametrize("path", EXAMPLES', 'parametrize("path", JOBS'); (R / "tests/trainer/contract/test_spec_reader.py").write_text(t)
sub("tests/trainer/user_code/test_class_path.py", ("str(Path(__file__).parent)", 'str(ROOT / "tests" / "helpers" / "trainer")'), ("from pathlib import Path\n", "from pathlib import Path\n\nfrom tests.helpers.paths import ROOT\n"))
sub("tests/helpers/deploy/composition.py", ("from tests.helpers.paths import", "from tests.helpers.paths import")) if False else None
# lines that the longer names made too long
def fix(path, *pairs):
    p = R / path; t = p.read_text()
    for a, b in pairs:
        if a not in t: print("FIX NOT FOUND", path, a[:60]); continue
        t = t.replace(a, b, 1)
    p.write_text(t)
fix("norm/statistics/population.py", ("see `syncnorm.norm.statistics.snapshots.drift`. mean_abs: mean of |mean| over channels. var_mean: mean\n    of var over channels.", "see `snapshots.drift`. mean_abs: mean of |mean| over channels. var_mean: mean of var\n    over channels."))
fix("service/api/report_limits.py", (" (trainer/reporting/log_buffer.py, trainer/reporting/reporter.py)", " (trainer/reporting)"))
fix("service/cli/doctor.py", ("by a small program on Ray (syncnorm.trainer.driver.cluster_probe), which", "by a small program on Ray (trainer/driver/cluster_probe.py), which"), ("Run syncnorm.trainer.driver.cluster_probe on Ray and read what it found.", "Run the probe on Ray and read what it found."))
fix("service/local/supervisor.py", ("`python -m syncnorm.service.local.supervisor RECORD LOG COMMAND…`, with a pipe as standard input. The keeper adopts", "`python -m syncnorm.service.local.supervisor RECORD LOG COMMAND…`, with a pipe as standard input. It adopts"))
fix("service/studies/measures.py", ("as `syncnorm.service.jobs.study_metrics` has it", "as `jobs.study_metrics` has it"))
fix("tests/helpers/service/killable.py", (" forks a service for each line it reads, and answers with its pid.", " forks a service for each line it reads, and answers its\npid."))
fix("tests/service/local/test_free_ports.py", ('CLAIM = "import sys; from syncnorm.service.local.free_ports import claimed_port\\nwith claimed_port(int(sys.argv[1])) as port: print(port)"', 'CLAIM = (\n    "import sys; from syncnorm.service.local.free_ports import claimed_port\\n"\n    "with claimed_port(int(sys.argv[1])) as port: print(port)"\n)'))
fix("tests/stack/test_survival.py", ("see syncnorm.trainer.driver.ray_trainer.", "see trainer/driver/ray_trainer.py."))
fix("tests/test_architecture.py", ("    code = \"import syncnorm.service.api.app, sys; print([m for m in ('torch', 'lightning', 'ray', 'mlflow') if m in sys.modules])\"", "    heavy = ('torch', 'lightning', 'ray', 'mlflow')\n    code = f\"import syncnorm.service.api.app, sys; print([m for m in {heavy} if m in sys.modules])\""))
fix("tests/trainer/ranks/test_rank_faults.py", ("syncnorm.trainer.worker.worker: before the preflight;", "the worker: before the preflight;"))
fix("trainer/contract/cluster_report.py", ('"""What `syncnorm.trainer.driver.cluster_probe` finds on the hosts', '"""What `driver.cluster_probe` finds on the hosts'))
fix("trainer/contract/protocol.py", ("before it starts the driver `python -m syncnorm.trainer.driver.main FOLDER`; the driver writes\n`result.json` last", "before it starts the driver `python -m syncnorm.trainer.driver.main FOLDER`; the driver\nwrites `result.json` last"), ("; see trainer/contract/bounds.py.", "; see bounds.py."), ("see `export_folder` and syncnorm.trainer.driver.reexport.", "see `export_folder` and driver/reexport.py."))
fix("trainer/driver/cluster_probe.py", ('"""Looks at a cluster from inside: `python -m syncnorm.trainer.driver.cluster_probe FOLDER API_URL MLFLOW_URL`. Writes report.json last.\n', '"""Looks at a cluster from inside; writes report.json last.\n\n`python -m syncnorm.trainer.driver.cluster_probe FOLDER API_URL MLFLOW_URL`\n'))
fix("trainer/driver/main.py", ('"""The driver of one attempt: `python -m syncnorm.trainer.driver.main FOLDER`. Starts the workers, waits, writes result.json last."""', '"""The driver of one attempt: starts the workers, waits, writes result.json last.\n\n`python -m syncnorm.trainer.driver.main FOLDER`\n"""'))
fix("trainer/storage/storage.py", ("`tests/trainer/storage/test_storage.py` asks them the same: a file", "`test_storage.py` asks them the same: a file"))
fix("trainer/training/lightning_overhead.py", ("and syncnorm.trainer.ranks.stop_agreement agrees on", "and ranks/stop_agreement.py agrees on"))
fix("trainer/training/user_module.py", ("see syncnorm.trainer.training.user_metrics;", "see user_metrics.py;"))
fix("trainer/worker/model_inspection.py", ("reads a job spec (JSON) from standard input and prints an Inspection (JSON). Nothing is\nrun.", "reads a job spec (JSON) from standard input and prints an\nInspection (JSON). Nothing is run."))
fix("tests/deploy/test_containers.py", ("import ROOT, Composition, eventually, inspect", "import Composition, eventually, inspect"))
fix("service/cli/demo.py", ("from syncnorm.service.cli import progress as screen", "import syncnorm\nfrom syncnorm.service.cli import progress as screen"))
(R / "service/client/__init__.py").write_text('"""The Python client: httpx alone, without torch. `from syncnorm import Client`."""\n\nfrom syncnorm.service.client.client import Client\n\n__all__ = ["Client"]\n')
for d, doc in {"service/api/http": "What holds for every request: methods, queries, bodies, entity tags, pages, errors, foreign origins.", "service/background": "Background loops, their health, and what is logged of outages.", "service/storage": "What the service reads from and writes to the storage: attempts' files, packages, the marker of the installation.", "service/store/tables": "SQL by table. Each part keeps to its own tables; `Store` puts them together."}.items():
    (R / d / "__init__.py").write_text(f'"""{doc}"""\n')
GENERATED = {"docs/reference/settings.md", "docs/explanation/life-of-a-job.md", "docs/reference/webhooks.md"}
exec(compile((HERE / "docs_split.py").open().read(), "docs_split.py", "exec"))
import shutil
for src in (HERE / "overlay").rglob("*"):
    if src.is_file() and str(src.relative_to(HERE / "overlay")) not in GENERATED:
        dst = R / src.relative_to(HERE / "overlay"); dst.parent.mkdir(parents=True, exist_ok=True); shutil.copy(src, dst)

# tests that read documents
fix("tests/service/jobs/test_lifecycle.py", ('ROOT / "service" / "README.md"', 'ROOT / "docs" / "explanation" / "life-of-a-job.md"'))
fix("tests/service/test_settings.py", ('ROOT / "service" / "README.md"', 'ROOT / "docs" / "reference" / "settings.md"'))
fix("tests/norm/test_readme.py", ('README = (Path(norm.__file__).parent / "README.md").read_text()', 'README = (ROOT / "docs" / "reference" / "normalizations.md").read_text()'), ("from pathlib import Path\n", "from tests.helpers.paths import ROOT\n"))
fix("service/cli/doctor.py", ("(trainer/driver/cluster_probe.py), which needs no free CPU. The Ray and the MLflow that", "(driver/cluster_probe.py), which needs no free CPU. The Ray and the MLflow that"))
fix("tests/service/test_settings.py", ('partition("## Settings")', 'partition("# Settings")'))
fix("service/cli/doctor.py", ("by a small program on Ray (driver/cluster_probe.py), which needs no free CPU. The Ray and the MLflow that `syncnorm serve` starts\nfor itself", "by a small program on Ray (driver/cluster_probe.py), which needs no free CPU. The Ray and the MLflow that\n`syncnorm serve` starts for itself"))
fix("service/local/supervisor.py", ("It adopts every orphan among the\nprogram's", "It adopts every orphan among\nthe program's"))
fix("tests/stack/test_survival.py", ("; see trainer/driver/ray_trainer.py.", "; see driver/ray_trainer.py."))
fix("trainer/contract/protocol.py", ("Everything an attempt writes lies under its folder, so an attempt\nthat was", "Everything an attempt writes lies under its folder, so\nan attempt that was"))
fix("trainer/training/lightning_overhead.py", ("gets no signals, and ranks/stop_agreement.py agrees on\n    stops.", "gets no signals, and ranks/stop_agreement.py agrees\n    on stops."))
fix("trainer/worker/model_inspection.py", ("reads a job spec (JSON) from standard input and prints an Inspection (JSON). Nothing is\ntrained. The service", "reads a job spec (JSON) from standard input and prints an\nInspection (JSON). Nothing is trained. The service"))
fix("service/local/supervisor.py", ("(Linux: child subreaper), and ends them all when the pipe closes, for whatever reason: a clean", "(Linux: child subreaper), and ends them all when the pipe closes,\nfor whatever reason: a clean"))
fix("trainer/contract/protocol.py", ("harm its successor. Messages go to `{service_url}", "harm its successor.\nMessages go to `{service_url}"))
fix("trainer/training/lightning_overhead.py", ("find out is\n    lost, for the error is swallowed.", "find\n    out is lost, for the error is swallowed."))
fix("trainer/worker/model_inspection.py", ("Inspection (JSON). Nothing is trained. The service runs it as a process of its own for a dry run; an attempt audits its own network the same way.", "Inspection (JSON). Nothing is trained. The service runs it as a process of its own for a dry run; an attempt audits its\nown network the same way."))

fix("service/local/supervisor.py", ("with a pipe as standard input. It adopts every orphan among the\nprogram's", "with a pipe as standard input. It adopts every orphan\namong the program's"))

p = R / "service/local/supervisor.py"; t = p.read_text(); i = t.index("`python -m"); j = t.index('"""', i)
t = t[:i] + """`python -m syncnorm.service.local.supervisor RECORD LOG COMMAND…`, with a pipe as standard input. It adopts every orphan
among the program's descendants (Linux: child subreaper), and ends them all when the pipe closes, for whatever reason: a
clean stop, a crash or kill -9 of the parent. RECORD lists pids with their start times, for `sweep` after the supervisor
itself was killed.
""" + t[j:]; p.write_text(t)
fix("trainer/training/lightning_overhead.py", ("Training runs in a thread, which gets no signals, and ranks/stop_agreement.py agrees on\n    stops.", "Training runs in a thread, which gets no\n    signals, and ranks/stop_agreement.py agrees on stops."), ) if "agrees on\n    stops." in (R / "trainer/training/lightning_overhead.py").read_text() else fix("trainer/training/lightning_overhead.py", ("which gets no signals, and ranks/stop_agreement.py agrees on\n    on stops.", "which gets no signals,\n    and ranks/stop_agreement.py agrees on stops."), ("gets no signals, and ranks/stop_agreement.py agrees\n    on stops.", "gets no\n    signals, and ranks/stop_agreement.py agrees on stops."))
fix("service/telemetry/logging.py", ('_OURS = ("service", "trainer", "norm")\n', '_OURS = "syncnorm"\n'), ("    for name in _OURS:\n        logging.getLogger(name).setLevel(logging.INFO)\n", "    logging.getLogger(_OURS).setLevel(logging.INFO)\n"))
fix("tests/deploy/test_composition_file.py", ('ROOT / "service" / "metrics.py"', 'ROOT / "service" / "telemetry" / "metrics.py"'))
p = R / "tests/service/telemetry/test_logging.py"; t = p.read_text(); t = t.replace('for name in ("", "service", "trainer", "norm")', 'for name in ("", "syncnorm")').replace('getLogger("service.x")', 'getLogger("syncnorm.x")').replace('"logger": "service.x"', '"logger": "syncnorm.x"'); p.write_text(t)
p = R / "pyproject.toml"; t = p.read_text(); t = t.replace('"*" = ["*.json", "*.c", "*.mako", "*.pyi", "py.typed"]', '"*" = ["*.json", "*.c", "*.mako", "*.pyi", "py.typed"]\nsyncnorm = ["examples/*.yaml", "examples/studies/*.yaml"]').replace('version = "0.1.0"', 'version = "0.2.0"'); p.write_text(t)
fix("service/api/app.py", ('VERSION = "0.1.0"\n', 'VERSION = __version__\n'), ("from syncnorm.service.", "from syncnorm import __version__\nfrom syncnorm.service."))
