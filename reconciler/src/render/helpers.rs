//! The helpers that templates may call. All are pure functions of their arguments.

use base64::Engine as _;
use handlebars::{
    Context, Handlebars, Helper, HelperResult, Output, RenderContext, RenderError, RenderErrorReason,
};
use serde_json::Value;

use crate::{object, yaml};

/// Adds `toYaml`, `toJson`, `quote`, `b64`, `sha256`, `default`, `join` to the built-in `if`, `unless`, `each`, `with`,
/// `lookup`, `eq`, `ne`, `gt`, `gte`, `lt`, `lte`, `and`, `or`, `not`, `len`.
pub(super) fn register(handlebars: &mut Handlebars<'_>) {
    handlebars.register_helper("toYaml", Box::new(to_yaml));
    handlebars.register_helper("toJson", Box::new(to_json));
    handlebars.register_helper("quote", Box::new(quote));
    handlebars.register_helper("b64", Box::new(b64));
    handlebars.register_helper("sha256", Box::new(sha256));
    handlebars.register_helper("join", Box::new(join));
    handlebars::handlebars_helper!(default: |value: Json, otherwise: Json| if value.is_null() { otherwise.clone() } else { value.clone() });
    handlebars.register_helper("default", Box::new(default));
}

fn argument<'a>(helper: &'a Helper<'_>, name: &'static str) -> Result<&'a Value, RenderError> {
    Ok(helper
        .param(0)
        .ok_or(RenderErrorReason::ParamNotFoundForIndex(name, 0))?
        .value())
}

fn text(value: &Value, name: &'static str) -> Result<String, RenderError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        _ => Err(RenderErrorReason::ParamTypeMismatchForName(
            name,
            "0".into(),
            "text, a number or a boolean".into(),
        )
        .into()),
    }
}

/// `{{toYaml value indent=8}}`: block YAML, every line indented, without a newline at the end. Stands at the beginning
/// of its line in the template.
fn to_yaml(
    helper: &Helper<'_>,
    _: &Handlebars<'_>,
    _: &Context,
    _: &mut RenderContext<'_, '_>,
    out: &mut dyn Output,
) -> HelperResult {
    let indent = helper
        .hash_get("indent")
        .and_then(|param| param.value().as_u64())
        .unwrap_or(0);
    let indent = " ".repeat(usize::try_from(indent.min(100)).unwrap_or(0));
    let text = yaml::print(argument(helper, "toYaml")?);
    for (index, line) in text.trim_end_matches('\n').split('\n').enumerate() {
        if index > 0 {
            out.write("\n")?;
        }
        if !line.is_empty() {
            out.write(&indent)?;
            out.write(line)?;
        }
    }
    Ok(())
}

/// `{{toJson value}}`: one line of JSON, which is also flow YAML.
fn to_json(
    helper: &Helper<'_>,
    _: &Handlebars<'_>,
    _: &Context,
    _: &mut RenderContext<'_, '_>,
    out: &mut dyn Output,
) -> HelperResult {
    Ok(out.write(&argument(helper, "toJson")?.to_string())?)
}

/// `{{quote value}}`: a double-quoted YAML string.
fn quote(
    helper: &Helper<'_>,
    _: &Handlebars<'_>,
    _: &Context,
    _: &mut RenderContext<'_, '_>,
    out: &mut dyn Output,
) -> HelperResult {
    let text = text(argument(helper, "quote")?, "quote")?;
    Ok(out.write(&Value::String(text).to_string())?)
}

/// `{{b64 value}}`: standard base64 of a text.
fn b64(
    helper: &Helper<'_>,
    _: &Handlebars<'_>,
    _: &Context,
    _: &mut RenderContext<'_, '_>,
    out: &mut dyn Output,
) -> HelperResult {
    let text = text(argument(helper, "b64")?, "b64")?;
    Ok(out.write(&base64::engine::general_purpose::STANDARD.encode(text))?)
}

/// `{{sha256 value}}`: hex SHA-256 of a text, or of the JSON of anything else.
fn sha256(
    helper: &Helper<'_>,
    _: &Handlebars<'_>,
    _: &Context,
    _: &mut RenderContext<'_, '_>,
    out: &mut dyn Output,
) -> HelperResult {
    let text = match argument(helper, "sha256")? {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok(out.write(&object::digest(text.as_bytes()))?)
}

/// `{{join list ","}}`: the items of a list with a text between them.
fn join(
    helper: &Helper<'_>,
    _: &Handlebars<'_>,
    _: &Context,
    _: &mut RenderContext<'_, '_>,
    out: &mut dyn Output,
) -> HelperResult {
    let between = helper
        .param(1)
        .and_then(|param| param.value().as_str())
        .unwrap_or(",");
    let Value::Array(items) = argument(helper, "join")? else {
        return Err(RenderErrorReason::ParamTypeMismatchForName("join", "0".into(), "a list".into()).into());
    };
    let items = items
        .iter()
        .map(|item| text(item, "join"))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(out.write(&items.join(between))?)
}
