"""JSON files of a run's folder in the present format: those of formats 1 and 2 (November 2026) are upgraded when read."""

FORMAT = 3  # of settings.json and record.json

# {group: "name old_name:name"}: the flat settings of format 1 in groups, renamed where there is a colon.
_SETTINGS = {
    "retrieval": "assets candidates",
    "cameras": "elevation_deg distance fovy_deg",
    "field": "bound levels features log2_table base_resolution max_resolution hidden density_scale density_radius",
    "rendering": "occupancy_resolution samples_per_ray render_size:resolutions",
    "distillation": "latent_weights t_min t_max t_anneal learning_rate_grid learning_rate_network learning_rate_end "
    "rate_reference:score_rms_reference epsilon delta_weight delta_every sparsity opaque",
    "initialisation": "warmup asset_steps asset_sigma asset_opacity_weight asset_colour_until asset_colour_after",
    "variational": "learning_rate_variational:learning_rate variational_rank:rank",
    "adaptation": "asset_views:views adaptation_steps:steps adaptation_batch:batch adaptation_rank:rank "
    "adaptation_learning_rate:learning_rate prefix_learning_rate prefix_learned adaptation_t_power:t_power "
    "adaptation_empty:empty adaptation_scale:scale",
    "output": "score_elevation_deg score_fovy_deg score_distance turntable_frames turntable_size turntable_rays "
    "mesh_resolution mesh_faces preview_every checkpoint_every",
}
# Settings that format 3 added, with what they were before.
_ADDED = {"initialisation": {"stored_poses": 0}, "variational": {"shared_noise": False}}
# Beginnings of keys, and values of "stage".
_SCORES = {"view_agreement": "view_accuracy", "front_behind": "janus_rate", "faces_behind": "janus_count"}
_SCORES |= {"a_lpips_off": "a_lpips_error", "a_lpips_minus": "a_lpips_difference"}  # compared with true objects
_STAGES = {"painting": "distillation"}


def upgrade(document):
    """A JSON document of a run's folder in the present format; one that is in it already comes back equal.

    Settings become grouped, scores and stages get their present names. Raises `KeyError` or `TypeError` for settings of
    format 1 that are incomplete or malformed.
    """
    upgraded = _value("", document)
    if isinstance(document, dict) and document.get("format", 1) > FORMAT:
        return upgraded
    if isinstance(document, dict) and {"stack", "settings"} <= set(document):  # settings.json and record.json
        upgraded["format"] = FORMAT
    return upgraded


def _key(key: str) -> str:
    old = next((name for name in _SCORES if key.startswith(name)), None)
    return key if old is None else key.replace(old, _SCORES[old], 1)


def _value(key: str, value):
    if isinstance(value, dict):
        if key == "settings":
            value = _grouped(value) if "guidance_sds" in value else value
            return {name: _ADDED.get(name, {}) | v if isinstance(v, dict) else v for name, v in value.items()}
        return {_key(name): _value(name, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_value("", inner) for inner in value]
    return _STAGES.get(value, value) if key == "stage" else value


def _grouped(flat: dict) -> dict:
    """Settings of format 1 in groups; of its two guidances the one that the method used."""
    settings = {name: flat[name] for name in ("method", "initialise", "adapt", "particles", "iterations", "seed")}
    for group, names in _SETTINGS.items():
        pairs = (name.partition(":") for name in names.split())
        settings[group] = {new or old: flat[old] for old, _, new in pairs}
    settings["distillation"]["guidance"] = flat["guidance_sds" if flat["method"] == "sds" else "guidance"]
    return settings
