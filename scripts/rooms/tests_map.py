"""Append moves of tests to moves.txt, from the tracked files: test_<module> goes beside its module's room."""
import subprocess
from pathlib import Path
HERE = Path(__file__).resolve().parent
tracked = subprocess.run(["git","ls-files"],capture_output=True,text=True).stdout.split()
base = (HERE / "moves.txt")
moves = dict(l.split() for l in base.read_text().splitlines() if l.strip())
ROOMS = {
 "service": dict(api="api faults_", ),
}
EXPLICIT = {
 # service
 "service/test_api": "service/api/test_api", "service/test_arrows": "service/faults/test_arrows", "service/test_commands": "service/cli/test_commands",
 "service/test_corpora": "service/faults/test_corpora", "service/test_crash_on_ray": "service/faults/test_crash_on_ray", "service/test_cut_network": "service/faults/test_cut_network",
 "service/test_cut_ray": "service/faults/test_cut_ray", "service/test_elastic": "service/scheduling/test_elastic", "service/test_killed_service": "service/faults/test_killed_service",
 "service/test_later_exports": "service/reconciler/test_later_exports", "service/test_machine": "service/faults/test_machine", "service/test_migrations": "service/store/test_migrations",
 "service/test_on_ray": "service/integrations/test_on_ray", "service/test_partition": "service/faults/test_partition", "service/test_storage_away": "service/faults/test_storage_away",
 "service/test_streams": "service/api/test_streams", "service/test_study_api": "service/api/test_study_api", "service/test_study_report": "service/studies/test_study_report",
 "service/test_study_spec": "service/jobs/test_study_spec", "service/test_usage": "service/store/test_usage", "service/test_scheduler": "service/scheduling/test_scheduler",
 "service/test_store": "service/store/test_store", "service/test_show": "service/cli/test_progress", "service/test_secrets": "service/integrations/test_secrets",
 "service/test_settings": "service/test_settings", "service/test_webhooks":"service/integrations/test_webhooks","service/test_logs":"service/telemetry/test_logging",
 # trainer
 "trainer/test_alerts": "trainer/callbacks/test_statistics_alerts", "trainer/test_attempts_in_a_bucket": "trainer/storage/test_attempts_in_a_bucket", "trainer/test_callbacks":"trainer/callbacks/test_callbacks",
 "trainer/test_checkpoint_faults": "trainer/training/test_checkpoint_faults", "trainer/test_data":"trainer/data/test_data", "trainer/test_image_data":"trainer/data/test_image_data",
 "trainer/test_diagnostics":"trainer/diagnostics/test_diagnostics","trainer/test_diagnostics_in_training":"trainer/diagnostics/test_diagnostics_in_training",
 "trainer/test_examples":"trainer/test_examples","trainer/test_full_disk":"trainer/training/test_full_disk","trainer/test_loader":"trainer/data/test_loader","trainer/test_sampler":"trainer/data/test_sampler",
 "trainer/test_matrix":"trainer/test_matrix","trainer/test_models":"trainer/models/test_models","trainer/test_models_with_kinds":"trainer/models/test_models_with_kinds",
 "trainer/test_non_finite":"trainer/callbacks/test_non_finite","trainer/test_own_module":"trainer/training/test_user_module","trainer/test_population_of_a_job":"trainer/export/test_population_of_a_job",
 "trainer/test_rank_faults":"trainer/ranks/test_rank_faults","trainer/test_ready_studies":"trainer/test_ready_studies","trainer/test_resume":"trainer/driver/test_resume","trainer/test_resume_point":"trainer/driver/test_resume_point",
 "trainer/test_two_workers":"trainer/test_two_workers","trainer/test_user_mistakes":"trainer/user_code/test_user_mistakes","trainer/test_isolation":"trainer/reporting/test_partition_detector",
 # norm
 "norm/test_audit":"norm/auditing/test_audit","norm/test_batch_kinds":"norm/layers/test_batch_kinds","norm/test_benchmarks":"norm/test_benchmarks","norm/test_compile":"norm/layers/test_compile",
 "norm/test_convert":"norm/conversion/test_convert","norm/test_ddp":"norm/layers/test_ddp","norm/test_docstrings":"norm/test_docstrings","norm/test_exchange":"norm/distributed/test_exchange",
 "norm/test_fold":"norm/folding/test_fold","norm/test_kernels":"norm/native/test_kernels","norm/test_laws":"norm/layers/test_laws","norm/test_moments":"norm/statistics/test_moments",
 "norm/test_networks":"norm/conversion/test_networks","norm/test_population":"norm/statistics/test_population","norm/test_readme":"norm/test_readme","norm/test_recompute":"norm/layers/test_activation_checkpointing",
 "norm/test_sample_kinds":"norm/layers/test_sample_kinds","norm/test_snapshot":"norm/statistics/test_snapshots","norm/test_sync_batch_norm":"norm/layers/test_sync_batch_norm",
 "norm/test_synchronized_kinds":"norm/layers/test_synchronized_kinds","norm/test_torch_compat":"norm/test_torch_compat","norm/test_weight":"norm/layers/test_weight",
}
for _l in (HERE / "tests_extra.txt").read_text().splitlines():
    _k,_v=_l.split(); EXPLICIT[_k]=_v
HELPERS = {"tests/chromium.py","tests/odd_server.py","tests/pages.py","tests/amounts.py","tests/fakes.py","tests/az.py","tests/gs.py","tests/s3.py","tests/bucket_server.py"}
out = {}
for f in tracked:
    if not f.startswith("tests/") or not f.endswith(".py"): continue
    p = Path(f); parts = p.parts
    if f in HELPERS: out[f] = f"tests/helpers/{p.name}"; continue
    if len(parts) == 3 and parts[1] in ("service","trainer","norm","stack","deploy") and not p.name.startswith(("test_","conftest","__init__")):
        out[f] = f"tests/helpers/{parts[1]}/{p.name}"; continue
    if len(parts) != 3 or parts[1] not in ("service","trainer","norm") or not p.name.startswith("test_"): continue
    key = f"{parts[1]}/{p.stem}"
    if key in EXPLICIT: new = f"tests/{EXPLICIT[key]}.py"
    else:
        stem = p.stem[5:]
        cand = [v for k, v in moves.items() if Path(k).stem == stem and k.startswith(parts[1] + "/")]
        stay = [k for k in tracked if Path(k).stem == stem and k.startswith(parts[1] + "/") and k not in moves]
        if len(cand) + len(stay) == 1: v = (cand + stay)[0]
        elif cand: v = cand[0]
        else: print("no room for", f); continue
        new = "tests/" + str(Path(v).parent) + f"/test_{Path(v).stem}.py"
    if new != f: out[f] = new
(HERE / "moves_tests.txt").write_text("".join(f"{k} {v}\n" for k, v in sorted(out.items())))
dup=[v for v in out.values() if list(out.values()).count(v)>1]; print("dups",dup, len(out))
