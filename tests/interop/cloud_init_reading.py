"""Run with cloud-init's own packages in reach: how that cloud-init reads user data, as JSON.

Standard input has the text; the folder to read it into is the argument. The boothooks in it are run.
"""

import json
import logging
import os
import sys
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from cloudinit import sources, stages
from cloudinit.config.schema import validate_cloudconfig_schema
from cloudinit.settings import PER_INSTANCE


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def main() -> None:
    folder = Path(sys.argv[1])
    paths = {"cloud_dir": str(folder / "cloud"), "run_dir": str(folder / "run"), "templates_dir": str(folder)}
    settings = folder / "cloud.cfg"
    settings.write_text(json.dumps({"system_info": {"distro": "debian", "paths": paths}}))
    os.environ["CLOUD_CFG"] = str(settings)
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    init = stages.Init()
    init.initialize()
    source = sources.DataSource({}, init.distro, init.paths)
    source.metadata, source.userdata_raw = {"instance-id": "i-1"}, sys.stdin.read()
    init.datasource = init.paths.datasource = source
    known = json.dumps({"v1": {"instance_id": "i-1"}})
    for kind in ("instance_data", "instance_data_sensitive"):
        Path(init.paths.get_runpath(kind)).write_text(known)
    init.instancify()
    init.update()
    init.consume_data(PER_INSTANCE)
    instance = folder / "cloud" / "instance"
    texts = {
        kind: {path.name: path.read_text() for path in sorted((instance / kind).glob("*"))}
        for kind in ("scripts", "boothooks")
    }
    config = (instance / "cloud-config.txt").read_text()
    # It says which schema is broken as a warning, and goes on.
    validate_cloudconfig_schema(yaml.safe_load(config) or {})
    json.dump({"config": config, **texts, "warnings": warnings.said}, sys.stdout)


if __name__ == "__main__":
    main()
