//! Lists, written piece by piece: however long one is, a portion of its text is in memory at a time.
//!
//! Objects in the version that is stored are written of the bytes that the cache has; others, and rows of tables, of values, a
//! few at a time. What may fail by somebody else's fault (conversion by a webhook) is done before the first byte, so that the
//! client gets to know why. Two kinds of list are made whole: those indented for people, and tables in YAML.
//!
//! A protobuf list says its length first: lengths are found out before, without writing.

use super::negotiate::{Output, Shape};
use super::respond::{cached_form, go_package, shown_kind, text, with_body};
use super::table;
use crate::request::{Body, Response};
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, StatusCode, header};
use keelson_api::codec::{Format, json, proto, yaml};
use keelson_api::{ApiError, ApiResult, Map, Object, Reason, SchemaRef, Value, builtin};
use keelson_cache::{Cache, Entry};
use keelson_registry::ResourceDef;
use keelson_registry::codec::{self, partial_metadata};
use keelson_registry::engine::{Engine, Page};
use std::sync::Arc;

/// About so many bytes go into one piece.
const PIECE: usize = 64 * 1024;
/// So many objects are decoded, or converted, at once.
const BATCH: usize = 32;

/// Refuses a list with an object among it that can't be read.
pub fn readable(def: &ResourceDef, page: &Page) -> ApiResult<()> {
    let storage = def.storage.as_ref();
    let error = storage.and_then(|storage| codec::unreadable_list(storage, &page.entries));
    error.map_or(Ok(()), Err)
}

/// A list in the format and shape asked for.
pub async fn list(
    engine: &Arc<Engine>,
    cache: Cache,
    out: Output,
    def: &Arc<ResourceDef>,
    page: Page,
    include: &str,
) -> ApiResult<Response> {
    readable(def, &page)?;
    if out.shape == Shape::Metadata {
        return Err(ApiError::new(
            Reason::NotAcceptable,
            format!(
                "you requested PartialObjectMetadata, but the requested object is a list (*{}.{})",
                go_package(def),
                def.list_kind
            ),
        ));
    }
    let objects = Objects {
        engine: engine.clone(),
        cache,
        def: def.clone(),
        out,
        include: include.to_string(),
        now: keelson_clock::now(),
    };
    let tables_in_yaml = out.shape == Shape::Table && out.format == Format::Yaml;
    if out.pretty && out.format != Format::Protobuf
        || tables_in_yaml
        || page.entries.is_empty() && out.format == Format::Yaml
    {
        return objects.whole(page).await;
    }
    let (head, tail) = objects.around(&page);
    match out.format {
        Format::Protobuf => objects.messages(page).await,
        _ => {
            let source = objects.source(page.entries).await?;
            Writing::new(objects, source, head, tail).answer(None).await
        }
    }
}

fn list_kind(def: &ResourceDef, out: Output) -> (String, String) {
    match out.shape {
        Shape::Object => (def.api_version(), def.list_kind.to_string()),
        _ => (out.meta_version().to_string(), "PartialObjectMetadataList".to_string()),
    }
}

fn list_meta(page: &Page) -> Map {
    let mut meta = Map::new();
    if !page.continue_token.is_empty() {
        meta.insert("continue", page.continue_token.as_str());
    }
    if let Some(n) = page.remaining {
        meta.insert("remainingItemCount", i64::try_from(n).unwrap_or(i64::MAX));
    }
    meta.insert("resourceVersion", page.revision.to_string());
    meta
}

/// What is still to be written.
enum Source {
    Entries(std::vec::IntoIter<Arc<Entry>>),
    /// Converted already.
    Values(std::vec::IntoIter<Object>),
    Messages(std::vec::IntoIter<Message>),
}

/// An item of a protobuf list: its length is known, or it is there.
enum Message {
    Stored(Arc<Entry>, usize),
    Encoded(Vec<u8>),
}

impl Message {
    fn len(&self) -> usize {
        match self {
            Message::Stored(_, length) => *length,
            Message::Encoded(bytes) => bytes.len(),
        }
    }
}

/// The objects of a list, and how to write one.
struct Objects {
    engine: Arc<Engine>,
    cache: Cache,
    def: Arc<ResourceDef>,
    out: Output,
    include: String,
    now: jiff::Timestamp,
}

impl Objects {
    /// Whether the stored object of each entry is of the version that is stored now.
    fn are_of_one_version(&self, entries: &[Arc<Entry>]) -> bool {
        let start = format!("{{\"apiVersion\":\"{}\"", self.def.api_version());
        entries.iter().all(|e| e.value().starts_with(start.as_bytes()))
    }

    async fn source(&self, entries: Vec<Arc<Entry>>) -> ApiResult<Source> {
        let asks = self.def.custom && self.def.converter.is_some() && !self.are_of_one_version(&entries);
        if asks {
            let objects = self.engine.objects(&self.def, &entries).await?;
            return Ok(Source::Values(objects.into_iter()));
        }
        Ok(Source::Entries(entries.into_iter()))
    }

    /// What stands before the items of a text, and after them.
    fn around(&self, page: &Page) -> (Vec<u8>, Vec<u8>) {
        let (api_version, kind) = list_kind(&self.def, self.out);
        let meta = list_meta(page);
        let json = |value: &Map| String::from_utf8_lossy(&json::encode_map(value)).into_owned();
        if self.out.shape == Shape::Table {
            let (api_version, columns) = (self.out.meta_version(), table::columns(&self.def));
            let columns = String::from_utf8_lossy(&json::encode(&columns)).into_owned();
            let head = format!(
                "{{\"kind\":\"Table\",\"apiVersion\":\"{api_version}\",\"columnDefinitions\":{columns},\"metadata\":{},\"rows\":[",
                json(&meta)
            );
            return (head.into_bytes(), b"]}\n".to_vec());
        }
        if self.out.format == Format::Yaml {
            let part = |pairs: Vec<(&str, Value)>| yaml::encode(&Value::from(pairs.into_iter().collect::<Map>()));
            let head = [part(vec![("apiVersion", api_version.into())]), b"items:\n".to_vec()].concat();
            return (head, part(vec![("kind", kind.into()), ("metadata", meta.into())]));
        }
        let named = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\"");
        match self.is_plain() {
            true => {
                let head = format!("{named},\"metadata\":{},\"items\":[", json(&meta));
                (head.into_bytes(), b"]}\n".to_vec())
            }
            false => {
                let head = format!("{named},\"items\":[");
                (
                    head.into_bytes(),
                    format!("],\"metadata\":{}}}\n", json(&meta)).into_bytes(),
                )
            }
        }
    }

    /// Items of a built-in kind in the stored version.
    fn is_plain(&self) -> bool {
        !self.def.custom && cached_form(&self.def, self.out).is_some()
    }

    /// Appends an item, made of what the cache has. False: it can't be, and nothing was written.
    fn append(&self, entry: &Arc<Entry>, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let written = match (self.out.shape, self.out.format) {
            (Shape::Table, _) => self.append_row(entry, out),
            (_, Format::Json) => self.append_json(entry, out),
            _ => None,
        };
        if written.is_none() {
            out.truncate(start);
        }
        written.is_some()
    }

    fn append_json(&self, entry: &Arc<Entry>, out: &mut Vec<u8>) -> Option<()> {
        let form = cached_form(&self.def, self.out)?;
        let (api_version, kind) = shown_kind(&self.def, self.out);
        match (self.def.custom, self.out.shape) {
            (false, Shape::Object) => {
                let start = out.len();
                self.cache.append(entry, form, out).ok()?;
                // The comma before the first member.
                *out.get_mut(start)? = b'{';
            }
            (false, _) => {
                out.extend_from_slice(format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\"").as_bytes());
                self.cache.append(entry, form, out).ok()?;
            }
            (true, _) => {
                // In order of names; if that isn't so with these two first, values know better.
                out.extend_from_slice(format!("{{\"apiVersion\":\"{api_version}\",\"kind\":\"{kind}\"").as_bytes());
                let start = out.len();
                self.cache.append(entry, form, out).ok()?;
                let first = out.get(start + 2..).filter(|first| *first > &b"kind\""[..]);
                first?;
            }
        }
        out.push(b'}');
        Some(())
    }

    fn append_row(&self, entry: &Arc<Entry>, out: &mut Vec<u8>) -> Option<()> {
        let storage = self.def.storage.as_ref()?;
        if self.def.custom || !self.def.is_storage_version() || self.include == "Object" {
            return None;
        }
        let object = codec::decode_for_cells(storage, &*self.def.columns.cells, entry).ok()?;
        let mut row = json::encode_map(&table::cells(&self.def, &object, self.now));
        row.pop();
        out.append(&mut row);
        if self.include == "None" {
            out.extend_from_slice(b",\"object\":null}");
            return Some(());
        }
        let meta = self.out.meta_version();
        let object = format!(",\"object\":{{\"apiVersion\":\"{meta}\",\"kind\":\"PartialObjectMetadata\"");
        out.extend_from_slice(object.as_bytes());
        self.cache.append(entry, codec::META_JSON, out).ok()?;
        out.extend_from_slice(b"}}");
        Some(())
    }

    /// An item as a value: of the shape asked for, and without what items of its kind lack.
    fn shaped(&self, mut object: Object) -> Value {
        match self.out.shape {
            Shape::Table => table::row(&self.def, object, self.out, &self.include, self.now),
            Shape::MetadataList => partial_metadata(&object, self.out.meta_version()).into(),
            _ => {
                if !self.def.custom {
                    object.remove("apiVersion");
                    object.remove("kind");
                }
                object.into()
            }
        }
    }

    fn append_value(&self, object: Object, out: &mut Vec<u8>) -> ApiResult<()> {
        let item = self.shaped(object);
        if self.out.format == Format::Yaml {
            let items: Map = [("items", vec![item])].into_iter().collect();
            let text = yaml::encode(&items.into());
            let item = text.strip_prefix(b"items:\n");
            out.extend_from_slice(item.ok_or_else(|| ApiError::internal("a list in YAML begins with its name"))?);
            return Ok(());
        }
        match item {
            // As the cache's bytes of it would be.
            Value::Object(map) if self.is_plain() && self.out.shape == Shape::MetadataList => {
                out.extend_from_slice(&codec::to_json(&Object(map)));
            }
            item => json::encode_into(&item, out),
        }
        Ok(())
    }

    fn message(&self, object: Object) -> ApiResult<Vec<u8>> {
        let encoded = match self.out.shape {
            Shape::Object => proto::encode_message(&object, &self.def.schema),
            _ => proto::encode_message(
                &partial_metadata(&object, self.out.meta_version()),
                &codec::partial_schema()?,
            ),
        };
        encoded.map_err(ApiError::internal)
    }

    /// An item made of what the cache has. What is stored as JSON has to be encoded to know its length, and then is.
    fn direct_message(&self, entry: &Arc<Entry>) -> Option<Message> {
        let form = cached_form(&self.def, self.out)?;
        if self.def.custom {
            let mut bytes = Vec::new();
            self.cache.append(entry, form, &mut bytes).ok()?;
            return Some(Message::Encoded(bytes));
        }
        let length = self.cache.length(entry, form).ok()?;
        Some(Message::Stored(entry.clone(), length))
    }

    /// A list in protobuf.
    async fn messages(self, page: Page) -> ApiResult<Response> {
        let mut items = Vec::with_capacity(page.entries.len());
        for entries in page.entries.chunks(BATCH) {
            let direct: Option<Vec<Message>> = entries.iter().map(|entry| self.direct_message(entry)).collect();
            match direct {
                Some(messages) => items.extend(messages),
                None => {
                    for object in self.engine.objects(&self.def, entries).await? {
                        items.push(Message::Encoded(self.message(object)?));
                    }
                }
            }
        }
        let meta_schema: SchemaRef = builtin::builtin_type("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")
            .ok_or_else(|| ApiError::internal("no schema of ListMeta"))?;
        let meta = proto::encode_message(&list_meta(&page), &meta_schema).map_err(ApiError::internal)?;
        let mut first = Vec::new();
        proto::begin_field(1, meta.len(), &mut first);
        first.extend_from_slice(&meta);
        let with_key = |length: usize| 1 + (usize::BITS - (length | 1).leading_zeros()).div_ceil(7) as usize + length;
        let length = first.len() + items.iter().map(|item| with_key(item.len())).sum::<usize>();
        let (api_version, kind) = list_kind(&self.def, self.out);
        let (mut head, tail) = proto::envelope_around(&api_version, &kind, length);
        let whole = head.len() + length + tail.len();
        head.append(&mut first);
        let source = Source::Messages(items.into_iter());
        Writing::new(self, source, head, tail.to_vec())
            .answer(Some(whole))
            .await
    }

    fn append_message(&self, message: Message, out: &mut Vec<u8>) -> ApiResult<()> {
        proto::begin_field(2, message.len(), out);
        match message {
            Message::Encoded(bytes) => out.extend_from_slice(&bytes),
            Message::Stored(entry, length) => {
                let form = cached_form(&self.def, self.out).ok_or_else(|| ApiError::internal("no form of a list"))?;
                let start = out.len();
                self.cache.append(&entry, form, out).map_err(ApiError::internal)?;
                if out.len() - start != length {
                    return Err(ApiError::internal("an item of a list isn't as long as it was"));
                }
            }
        }
        Ok(())
    }

    /// A list for people, or a table in YAML, in one go.
    async fn whole(self, page: Page) -> ApiResult<Response> {
        let objects = self.engine.objects(&self.def, &page.entries).await?;
        let meta = list_meta(&page);
        if self.out.shape == Shape::Table {
            let version = page.revision.to_string();
            let mut table = table::table(&self.def, objects, self.out, &self.include, &version, true)?;
            table.set_at(&["metadata"], meta);
            return text(StatusCode::OK, self.out, table);
        }
        let (api_version, kind) = list_kind(&self.def, self.out);
        let items: Vec<Value> = objects.into_iter().map(|object| self.shaped(object)).collect();
        let mut list = Object::new();
        list.set_gvk(&api_version, &kind);
        list.insert("metadata", meta);
        list.insert("items", items);
        text(StatusCode::OK, self.out, list.into())
    }
}

/// A list on its way out.
struct Writing {
    objects: Objects,
    source: Source,
    /// What comes before the next item.
    head: Vec<u8>,
    tail: Vec<u8>,
    is_first: bool,
}

impl Writing {
    fn new(objects: Objects, source: Source, head: Vec<u8>, tail: Vec<u8>) -> Self {
        Writing {
            objects,
            source,
            head,
            tail,
            is_first: true,
        }
    }

    /// The first piece is made before the head of the answer, so that what goes wrong with it can be told.
    async fn answer(mut self, length: Option<usize>) -> ApiResult<Response> {
        let content_type = self.objects.out.content_type();
        let (first, done) = self.piece().await?;
        if done {
            return Ok(with_body(StatusCode::OK, content_type, first));
        }
        let body = stream::unfold((Some(first), Some(self)), |(first, writing)| async move {
            if let Some(first) = first {
                return Some((Ok(first), (None, writing)));
            }
            let mut writing = writing?;
            // Who reads fast would have the thread until all is told, and everybody else's small requests wait.
            tokio::task::yield_now().await;
            match writing.piece().await {
                Ok((piece, done)) => Some((Ok::<_, ApiError>(piece), (None, (!done).then_some(writing)))),
                Err(e) => Some((Err(e), (None, None))),
            }
        });
        let mut response = Response::new(Body::from_stream(body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        Ok(response)
    }

    /// The next piece, and whether it is the last.
    async fn piece(&mut self) -> ApiResult<(Bytes, bool)> {
        let mut out = Vec::with_capacity(PIECE + PIECE / 4);
        out.append(&mut self.head);
        while out.len() < PIECE {
            if !self.some(&mut out).await? {
                out.append(&mut self.tail);
                return Ok((out.into(), true));
            }
        }
        Ok((out.into(), false))
    }

    /// Appends an item, or a few; false if there is none left.
    async fn some(&mut self, out: &mut Vec<u8>) -> ApiResult<bool> {
        match &mut self.source {
            Source::Messages(messages) => match messages.next() {
                Some(message) => self.objects.append_message(message, out).map(|()| true),
                None => Ok(false),
            },
            Source::Values(values) => match values.next() {
                Some(object) => {
                    self.separate(out);
                    self.objects.append_value(object, out).map(|()| true)
                }
                None => Ok(false),
            },
            Source::Entries(entries) => {
                let Some(entry) = entries.next() else { return Ok(false) };
                let (before, is_first) = (out.len(), self.is_first);
                self.separate(out);
                if self.objects.append(&entry, out) {
                    return Ok(true);
                }
                out.truncate(before);
                self.is_first = is_first;
                self.decoded(entry, out).await.map(|()| true)
            }
        }
    }

    /// A few entries that have to be decoded.
    async fn decoded(&mut self, first: Arc<Entry>, out: &mut Vec<u8>) -> ApiResult<()> {
        let mut batch = vec![first];
        if let Source::Entries(entries) = &mut self.source {
            batch.extend(entries.by_ref().take(BATCH - 1));
        }
        for object in self.objects.engine.objects(&self.objects.def, &batch).await? {
            self.separate(out);
            self.objects.append_value(object, out)?;
        }
        Ok(())
    }

    fn separate(&mut self, out: &mut Vec<u8>) {
        let is_first = std::mem::replace(&mut self.is_first, false);
        if !is_first && self.objects.out.format == Format::Json {
            out.push(b',');
        }
    }
}
