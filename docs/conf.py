"""How the documentation is built: ``sphinx-build -W docs build/docs``, with the extra ``docs``."""

import sparse24

project = "sparse24"
author = "the authors of sparse24"
project_copyright = "the authors of sparse24"
version = release = sparse24.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"sparse24 {version}"
exclude_patterns = ["_build"]

# Notebooks run while the pages are built, and one that raises ends the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"
