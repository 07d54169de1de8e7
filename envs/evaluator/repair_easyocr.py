"""Let desktop-env 1.0.2 be imported without easyocr, its only road to torch (2.5 GB).

``desktop_env/evaluators/metrics/docs.py`` imports easyocr at its top and uses it in one metric,
``compare_image_text``. Upstream would have to import it inside that function. This puts a module
``easyocr`` there whose ``Reader`` refuses; the episode of such a task then is an env_error, never a score.
With the real package installed (docs/osworld.md says how) the stub is never reached: in the same folder
Python prefers a package to a module.
"""

import importlib.metadata
import sysconfig
from pathlib import Path

VERSION = "1.0.2"
STUB = '''"""Stands in for easyocr; written by envs/evaluator/repair_easyocr.py."""


class Reader:
    """Refuses: text recognition is an optional extra."""

    def __init__(self, *arguments: object, **options: object) -> None:
        raise RuntimeError(
            "this evaluator reads text from pictures and needs easyocr, which is not installed: "
            "see 'Text recognition' in docs/osworld.md"
        )
'''

found = importlib.metadata.version("desktop-env")
if found != VERSION:
    raise SystemExit(f"repair_easyocr.py is for desktop-env {VERSION}, not {found}: revise it")
Path(sysconfig.get_path("purelib"), "easyocr.py").write_text(STUB)
