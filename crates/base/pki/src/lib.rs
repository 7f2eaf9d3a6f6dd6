//! Certificate authorities, certificates, tokens and kubeconfigs.
