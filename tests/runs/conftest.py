"""Commands and workdirs, as tests/cli has them."""

from tests.cli import conftest

call, refuse = conftest.call, conftest.refuse
_text_workdir, text_workdir = conftest._text_workdir, conftest.text_workdir
digits_workdir, image_workdir = conftest.digits_workdir, conftest.image_workdir
vae_workdir = conftest.vae_workdir
