//! What TensorBoard shows besides curves, as the summaries that its plugins read.

use super::histogram::Histogram;
use protobuf::well_known_types::Value as ProtoValue;
use protobuf::{Message, RepeatedField};
use serde_json::{Map, Value};
use std::io;
use tensorboard_proto::api::Status;
use tensorboard_proto::plugin_hparams::{HParamsPluginData, SessionEndInfo, SessionStartInfo};
use tensorboard_proto::summary::{Summary, SummaryMetadata, SummaryMetadata_PluginData, Summary_Image, Summary_Value};
use tensorboard_proto::tensor::TensorProto;
use tensorboard_proto::tensor_shape::{TensorShapeProto, TensorShapeProto_Dim};
use tensorboard_proto::types::DataType;

fn summary(tag: &str, fill: impl FnOnce(&mut Summary_Value)) -> Summary {
    let mut value = Summary_Value::new();
    value.set_tag(tag.into());
    fill(&mut value);
    let mut summary = Summary::new();
    summary.set_value(RepeatedField::from_vec(vec![value]));
    summary
}

fn metadata(plugin: &str, content: Vec<u8>) -> SummaryMetadata {
    let mut data = SummaryMetadata_PluginData::new();
    data.set_plugin_name(plugin.into());
    data.set_content(content);
    let mut metadata = SummaryMetadata::new();
    metadata.set_plugin_data(data);
    metadata
}

/// Markdown for the plugin `text`.
pub fn text(tag: &str, markdown: &str) -> Summary {
    let mut dim = TensorShapeProto_Dim::new();
    dim.set_size(1);
    let mut shape = TensorShapeProto::new();
    shape.set_dim(RepeatedField::from_vec(vec![dim]));
    let mut tensor = TensorProto::new();
    tensor.set_dtype(DataType::DT_STRING);
    tensor.set_tensor_shape(shape);
    tensor.set_string_val(RepeatedField::from_vec(vec![markdown.as_bytes().to_vec()]));
    summary(tag, |value| {
        value.set_metadata(metadata("text", Vec::new()));
        value.set_tensor(tensor);
    })
}

/// A PNG file. None: it is not one.
pub fn png(tag: &str, bytes: Vec<u8>) -> Option<Summary> {
    // Signature, then the chunk IHDR with width and height.
    let number = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let is_png = bytes.starts_with(b"\x89PNG\r\n\x1a\n");
    let (width, height) = (number(16).filter(|_| is_png)?, number(20)?);
    let mut image = Summary_Image::new();
    image.set_width(width as i32);
    image.set_height(height as i32);
    image.set_colorspace(3);
    image.set_encoded_image_string(bytes);
    Some(summary(tag, |value| value.set_image(image)))
}

pub fn histogram(tag: &str, histogram: &Histogram) -> Summary {
    let counts: Vec<f64> = histogram.counts.iter().map(|c| *c as f64).collect();
    let Histogram { min, max, sum, sum_squares, .. } = *histogram;
    tensorboard_rs::summary::histogram_raw(tag, min, max, histogram.count() as f64, sum, sum_squares, &histogram.limits(), &counts)
}

/// The start of a run for the plugin `hparams`: its settings by dotted key. A key without a value is left out: mixed with
/// numbers it would make them text. (A list of all keys beforehand, which the plugin could have, would hide every key that
/// the first run does not have.)
pub fn session_start(settings: &Map<String, Value>, time: f64) -> io::Result<Summary> {
    let mut info = SessionStartInfo::new();
    info.set_start_time_secs(time);
    info.set_hparams(settings.iter().filter_map(|(key, value)| Some((key.clone(), proto(value)?))).collect());
    let mut data = HParamsPluginData::new();
    data.set_session_start_info(info);
    session("_hparams_/session_start_info", &data)
}

/// Its end.
pub fn session_end(succeeded: bool, time: f64) -> io::Result<Summary> {
    let mut info = SessionEndInfo::new();
    info.set_status(if succeeded { Status::STATUS_SUCCESS } else { Status::STATUS_FAILURE });
    info.set_end_time_secs(time);
    let mut data = HParamsPluginData::new();
    data.set_session_end_info(info);
    session("_hparams_/session_end_info", &data)
}

fn session(tag: &str, data: &HParamsPluginData) -> io::Result<Summary> {
    let content = data.write_to_bytes().map_err(io::Error::other)?;
    Ok(summary(tag, |value| value.set_metadata(metadata("hparams", content))))
}

/// Numbers as numbers, lists as their text. None: no value, or a number that is none.
fn proto(value: &Value) -> Option<ProtoValue> {
    let mut out = ProtoValue::new();
    match value {
        Value::Null => return None,
        Value::Bool(flag) => out.set_bool_value(*flag),
        Value::Number(number) => out.set_number_value(number.as_f64().filter(|n| n.is_finite())?),
        Value::String(text) => out.set_string_value(text.clone()),
        other => out.set_string_value(other.to_string()),
    }
    Some(out)
}
