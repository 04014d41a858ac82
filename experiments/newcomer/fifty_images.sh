#!/bin/sh
# "I have fifty images with captions and want more of them, and a sheet to show."
set -e
python - <<'END' # yours are there already: images/, each with its caption in a .txt
import pathlib

from PIL import Image, ImageDraw

folder = pathlib.Path("images")
folder.mkdir(exist_ok=True)
for i in range(50):
  image = Image.new("L", (16, 16))
  draw, box = ImageDraw.Draw(image), (2 + i % 3, 2 + i % 4, 11 + i % 3, 11 + i % 4)
  name = ("disc", "frame")[i % 2]
  (draw.ellipse if name == "disc" else draw.rectangle)(box, outline=255)
  image.save(folder / f"{i}.png")
  (folder / f"{i}.txt").write_text(f"a {name}")
END

gen-jax train --config diffusion/digits:small --workdir runs/images \
  --config.data.source=image_folder --config.data.source.directory=images \
  --config.data.image_size=8 --config.data.batch_size=16 --config.data.flip=True \
  --config.train.num_steps=60 --config.evaluators.reading=None
gen-jax sample --workdir runs/images --prompt "a disc" --num 4 --out drawn
gen-jax edit --workdir runs/images --image drawn/a_disc_0_0.png --prompt "a frame" --out edited
gen-jax evaluate --workdir runs/images --images 16
