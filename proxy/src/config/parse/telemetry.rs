//! Variables of the access log, spans and taps.

use std::{collections::BTreeMap, path::PathBuf};

use heddle_mesh::{Identity, env};
use percent_encoding::percent_decode_str;

use super::Parser;
use crate::{
    access_log,
    config::{TapConfig, TelemetryConfig, TraceConfig},
};

const SERVICE_NAME: &str = "linkerd-proxy";

impl Parser<'_> {
    pub(in crate::config) fn telemetry(&mut self) -> TelemetryConfig {
        let listen = self.optional(env::CONTROL_LISTEN_ADDR, |text| {
            text.parse()
                .map_err(|error: std::net::AddrParseError| error.to_string())
        });
        let client = self.optional(env::TAP_SVC_NAME, |text| {
            text.parse::<Identity>().map_err(|error| error.to_string())
        });
        TelemetryConfig {
            access_log: self.optional(env::ACCESS_LOG, |text| match text {
                "apache" => Ok(access_log::Format::Apache),
                "json" => Ok(access_log::Format::Json),
                _ => Err("expected `apache` or `json`".to_owned()),
            }),
            trace: self.trace(),
            tap: client.map(|observer| TapConfig {
                listen: listen.unwrap_or(([0, 0, 0, 0], 4190).into()),
                observer,
            }),
            hostname_labels: self.flag("LINKERD2_PROXY_OUTBOUND_METRICS_HOSTNAME_LABELS"),
        }
    }

    fn trace(&mut self) -> Option<TraceConfig> {
        let text = |text: &str| Ok(text.to_owned());
        let service_name = self
            .optional(env::TRACE_SERVICE_NAME, text)
            .unwrap_or_else(|| SERVICE_NAME.to_owned());
        let extra = self.optional(env::TRACE_EXTRA_ATTRIBUTES, |text| lines(text, false));
        let resource = self.optional(env::OTEL_RESOURCE_ATTRIBUTES, otel);
        let path = self.optional(env::TRACE_ATTRIBUTES_PATH, |text| Ok(PathBuf::from(text)));
        let names = [env::TRACE_COLLECTOR_SVC_ADDR, env::TRACE_COLLECTOR_SVC_NAME];
        if !names.into_iter().any(|name| self.is_set(name)) {
            return None;
        }
        let collector = self.service(env::TRACE_COLLECTOR_SVC_ADDR, env::TRACE_COLLECTOR_SVC_NAME)?;
        // What is said of this process comes before what is said of all.
        let mut attributes = BTreeMap::from([("service.name".to_owned(), service_name)]);
        attributes.extend(extra.into_iter().flatten());
        attributes.extend(resource.into_iter().flatten());
        Some(TraceConfig {
            collector,
            attributes,
            attributes_path: path,
        })
    }
}

impl TraceConfig {
    /// Adds what the pod's labels say, where nothing else does.
    pub(crate) fn add_labels(&mut self, file: &str) {
        for (key, value) in lines(file, true).unwrap_or_default() {
            self.attributes.entry(key).or_insert(value);
        }
    }
}

type Attributes = Vec<(String, String)>;

/// `key=value` lines. The kubelet quotes the values of labels.
fn lines(text: &str, quoted: bool) -> Result<Attributes, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (key, value) = line
                .split_once('=')
                .ok_or_else(|| format!("`{line}`: expected `key=value`"))?;
            let value = match quoted {
                true => value.trim_matches('"').replace("\\\"", "\""),
                false => value.to_owned(),
            };
            Ok((key.to_owned(), value))
        })
        .collect()
}

/// `key=value,…`, percent-encoded, as OpenTelemetry has it.
fn otel(text: &str) -> Result<Attributes, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("`{pair}`: expected `key=value`"))?;
            let decode = |text: &str| percent_decode_str(text.trim()).decode_utf8_lossy().into_owned();
            Ok((decode(key), decode(value)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_in_each_form() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            lines("a=b\n\nc=d=e\n", false),
            Ok(vec![pair("a", "b"), pair("c", "d=e")])
        );
        assert_eq!(lines("app=\"we\\\"b\"", true), Ok(vec![pair("app", "we\"b")]));
        assert_eq!(otel("a=b%2Cc, d = e"), Ok(vec![pair("a", "b,c"), pair("d", "e")]));
        assert!(lines("a", false).is_err() && otel("a").is_err());
    }
}
