"""An artefact in an OCI registry: ModelPack, ModelKit, Docker's models, or plain files."""
