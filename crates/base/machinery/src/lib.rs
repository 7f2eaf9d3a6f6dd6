//! Pure algorithms over schema and values: canonical form, patches, server-side apply, selectors, CEL.
