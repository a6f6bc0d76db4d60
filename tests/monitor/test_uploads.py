"""What services of experiment tracking receive has no secrets of addresses."""

from monitor_data import recipe

from versatune_ds.config import DataConfig
from versatune_ds.monitor.uploads import uploaded_config, uploaded_text

SIGNED = "https://host/law.jsonl?sig=hidden"


def test_a_config_is_uploaded_without_the_queries_of_its_addresses(tmp_path):
    config = recipe(tmp_path)
    assert uploaded_config(config) == config.model_dump(mode="json")
    data = DataConfig(domains={"law": [SIGNED, "s3://b/x?.jsonl"], "code": "/data/x?.jsonl"})
    uploaded = uploaded_config(config.model_copy(update={"data": data}))
    assert uploaded["data"]["domains"]["law"]["train"] == ["https://host/law.jsonl", "s3://b/x?.jsonl"]
    assert uploaded["data"]["domains"]["code"]["train"] == ["/data/x?.jsonl"]


def test_a_file_is_uploaded_as_it_is_unless_it_has_a_query(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"train: {SIGNED}\n")
    assert uploaded_text(path) == "train: https://host/law.jsonl\n"
    path.write_text("train: https://host/law.jsonl\n")
    assert uploaded_text(path) is None
