"""The environments over OpenEnv: a server with a session for each client, and the client.

SIMPLESEG_OPENENV='{"env_id": "SimpleSeg-Scenes-v0"}' python -m seg_env.bridges.openenv.server

from seg_env.bridges.openenv.client import OutlineAction, OutlineClient

with OutlineClient(base_url="http://127.0.0.1:8000").sync() as client:
    asked = client.reset(split="val", index=3).observation      # .prompt, .image
    result = client.step(OutlineAction(text="[[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]"))
    print(result.reward, result.observation.metadata["iou"])
"""
