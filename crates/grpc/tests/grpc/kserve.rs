//! The KServe v2 protocol: what it tells, unary inference, requests that are wrong.

use lingqu_proto::inference as wire;
use lingqu_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use lingqu_proto::inference::infer_parameter::ParameterChoice;
use lingqu_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use lingqu_testkit::toy::{TOY_ADAPTERS, ToyFaults};
use lingqu_types::Limits;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::server::{Options, TestServer, greedy, until};

pub type Client = GrpcInferenceServiceClient<Channel>;

pub fn client(server: &TestServer) -> Client {
    GrpcInferenceServiceClient::new(server.channel.clone())
}

/// Elements of BYTES as they stand in raw contents.
pub fn raw_texts(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|t| [&(t.len() as u32).to_le_bytes()[..], t.as_bytes()].concat()).collect()
}

/// Adds an input with raw contents.
pub fn with(mut request: wire::ModelInferRequest, name: &str, tensor: Raw) -> wire::ModelInferRequest {
    let Raw(datatype, shape, bytes) = tensor;
    let (name, datatype) = (name.into(), datatype.into());
    request.inputs.push(InferInputTensor { name, datatype, shape: shape.to_vec(), ..Default::default() });
    request.raw_input_contents.push(bytes);
    request
}

/// Datatype, shape, contents.
pub struct Raw(pub &'static str, pub &'static [i64], pub Vec<u8>);

/// A prompt, always the likeliest token.
pub fn request(id: &str, text: &str) -> wire::ModelInferRequest {
    let request = wire::ModelInferRequest { model_name: "toy".into(), id: id.into(), ..Default::default() };
    let request = with(request, "text_input", Raw("BYTES", &[1], raw_texts(&[text])));
    with(request, "temperature", Raw("FP32", &[1], 0f32.to_le_bytes().to_vec()))
}

pub fn max_tokens(request: wire::ModelInferRequest, count: i32) -> wire::ModelInferRequest {
    with(request, "max_tokens", Raw("INT32", &[1, 1], count.to_le_bytes().to_vec()))
}

/// Elements of an output of BYTES with raw contents.
pub fn texts(response: &wire::ModelInferResponse, name: &str) -> Vec<String> {
    let mut bytes = raw(response, name);
    let mut texts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (text, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        texts.push(String::from_utf8(text.to_vec()).expect("UTF-8"));
        bytes = rest;
    }
    texts
}

pub fn raw<'a>(response: &'a wire::ModelInferResponse, name: &str) -> &'a [u8] {
    let index = response.outputs.iter().position(|o| o.name == name);
    &response.raw_output_contents[index.unwrap_or_else(|| panic!("{name} is not in {response:?}"))]
}

pub fn uints(response: &wire::ModelInferResponse, name: &str) -> Vec<u32> {
    raw(response, name).as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
}

pub fn parameter(response: &wire::ModelInferResponse, name: &str) -> ParameterChoice {
    response.parameters[name].parameter_choice.clone().expect("a value")
}

async fn infer(server: &TestServer, request: wire::ModelInferRequest) -> Result<wire::ModelInferResponse, Status> {
    client(server).model_infer(request).await.map(tonic::Response::into_inner)
}

async fn toy() -> TestServer {
    TestServer::toy(Options::default(), ToyFaults::default()).await.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_and_its_model_are_told() {
    let server = toy().await;
    let mut client = client(&server);
    assert!(client.server_live(wire::ServerLiveRequest {}).await.expect("live").into_inner().live);
    assert!(client.server_ready(wire::ServerReadyRequest {}).await.expect("ready").into_inner().ready);
    for (name, version, ready) in [("toy", "", true), ("toy", "1", true), ("toy", "2", false), ("gpt", "", false)] {
        let asked = wire::ModelReadyRequest { name: name.into(), version: version.into() };
        assert_eq!(client.model_ready(asked).await.expect("an answer").into_inner().ready, ready, "{name} {version}");
    }
    let server_metadata = client.server_metadata(wire::ServerMetadataRequest {}).await.expect("metadata").into_inner();
    assert_eq!(server_metadata.name, "lingqu");
    let asked = wire::ModelMetadataRequest { name: "toy".into(), version: String::new() };
    let metadata = client.model_metadata(asked).await.expect("metadata").into_inner();
    assert_eq!((metadata.name.as_str(), &metadata.versions[..]), ("toy", &["1".to_owned()][..]));
    for (name, datatype) in [("text_input", "BYTES"), ("stream", "BOOL"), ("max_tokens", "INT32")] {
        assert!(metadata.inputs.iter().any(|t| t.name == name && t.datatype == datatype), "{name}");
    }
    assert_eq!((metadata.outputs[0].name.as_str(), metadata.outputs[0].datatype.as_str()), ("text_output", "BYTES"));
    let asked = wire::ModelConfigRequest { name: "toy".into(), version: "1".into() };
    let config = client.model_config(asked).await.expect("a configuration").into_inner().config.expect("one");
    assert!(config.model_transaction_policy.expect("a policy").decoupled);
    assert_eq!(config.input.iter().filter(|input| !input.optional).count(), 1, "only the prompt is needed");
    let index = client.repository_index(wire::RepositoryIndexRequest::default()).await.expect("an index").into_inner();
    let index: Vec<_> = index.models.iter().map(|model| (model.name.as_str(), model.state.as_str())).collect();
    assert_eq!(index, [("toy", "READY"), (TOY_ADAPTERS[0], "READY"), (TOY_ADAPTERS[1], "READY")]);
    let adapter = wire::ModelMetadataRequest { name: TOY_ADAPTERS[1].into(), version: String::new() };
    assert_eq!(client.model_metadata(adapter).await.expect("metadata").into_inner().name, TOY_ADAPTERS[1]);
    let unknown = wire::ModelMetadataRequest { name: "gpt".into(), version: String::new() };
    assert_eq!(client.model_metadata(unknown).await.expect_err("unknown").code(), Code::NotFound);
    let unknown = wire::ModelConfigRequest { name: String::new(), version: "7".into() };
    assert_eq!(client.model_config(unknown).await.expect_err("unknown").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_that_of_our_own_protocol() {
    let server = toy().await;
    let own = server.once(greedy("hello")).await.expect("a reply");
    let end = own.finished.expect("an end");
    let usage = end.usage.expect("usage");
    let response = infer(&server, max_tokens(request("r1", "hello"), 60)).await.expect("a response");
    assert_eq!((response.model_name.as_str(), response.id.as_str()), ("toy", "r1"));
    assert_eq!(texts(&response, "text_output")[0], own.text);
    assert_eq!(texts(&response, "finish_reason"), [if end.reason == 1 { "stop" } else { "length" }]);
    assert_eq!(uints(&response, "num_input_tokens"), [usage.prompt_tokens]);
    assert_eq!(uints(&response, "num_output_tokens"), [own.token_ids.len() as u32]);
    assert_eq!(parameter(&response, "completion_tokens"), ParameterChoice::Int64Param(usage.completion_tokens.into()));
    assert_eq!(parameter(&response, "triton_final_response"), ParameterChoice::BoolParam(true));

    // The same with typed contents, and with parameters instead of tensors: it answers with typed contents.
    let contents = wire::InferTensorContents { bytes_contents: vec![b"hello".to_vec()], ..Default::default() };
    let parameter = |choice| wire::InferParameter { parameter_choice: Some(choice) };
    let typed = wire::ModelInferRequest {
        inputs: vec![InferInputTensor {
            name: "text_input".into(),
            datatype: "BYTES".into(),
            shape: vec![1, 1],
            contents: Some(contents),
            ..Default::default()
        }],
        parameters: [
            ("temperature".into(), parameter(ParameterChoice::DoubleParam(0.0))),
            ("max_tokens".into(), parameter(ParameterChoice::Int64Param(60))),
        ]
        .into(),
        outputs: vec![InferRequestedOutputTensor { name: "text_output".into(), ..Default::default() }],
        ..Default::default()
    };
    let response = infer(&server, typed).await.expect("a response");
    assert!(response.raw_output_contents.is_empty());
    let [output] = response.outputs.try_into().expect("the one that was asked for");
    assert_eq!((output.name.as_str(), &output.shape[..]), ("text_output", &[1, 1][..]));
    assert_eq!(output.contents.expect("contents").bytes_contents, [own.text.clone().into_bytes()]);

    // The vLLM backend's way.
    let json = r#"{"temperature": "0", "max_tokens": "60"}"#;
    let vllm = with(request("", "hello"), "sampling_parameters", Raw("BYTES", &[1], raw_texts(&[json])));
    let vllm = with(vllm, "exclude_input_in_output", Raw("BOOL", &[1], vec![0]));
    let vllm = with(vllm, "return_cumulative_logprob", Raw("BOOL", &[1], vec![1]));
    let response = infer(&server, vllm).await.expect("a response");
    assert_eq!(texts(&response, "text_output"), [format!("hello{}", own.text)]);
    let logprob = f32::from_le_bytes(raw(&response, "cumulative_logprob").try_into().expect("one"));
    assert!(logprob < 0.0 && logprob.is_finite(), "{logprob}");

    let asked = wire::ModelStatisticsRequest::default();
    let statistics = client(&server).model_statistics(asked).await.expect("statistics").into_inner();
    assert_eq!(statistics.model_stats[0].inference_count, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_of_a_batch_are_answered_each_by_itself() {
    let server = toy().await;
    let one = async |text: &str, count: u32| {
        let mut asked = greedy(text);
        asked.max_tokens = Some(count);
        asked.stop = vec!["a".into()];
        server.once(asked).await.expect("a reply").text
    };
    let expected = [one("x", 3).await, one("hello", 5).await, one("yz", 7).await];
    let batch = wire::ModelInferRequest::default();
    let batch = with(batch, "text_input", Raw("BYTES", &[3, 1], raw_texts(&["x", "hello", "yz"])));
    let counts = [3i32, 5, 7].map(i32::to_le_bytes).concat();
    let batch = with(batch, "max_tokens", Raw("INT32", &[3, 1], counts));
    let batch = with(batch, "temperature", Raw("FP32", &[1], vec![0; 4]));
    let batch = with(batch, "stop_words", Raw("BYTES", &[1, 2], raw_texts(&["a", ""])));
    let response = infer(&server, batch).await.expect("a response");
    assert_eq!(texts(&response, "text_output"), expected);
    assert!(response.outputs.iter().all(|output| output.shape == [3, 1]));
    assert_eq!(uints(&response, "num_output_tokens").len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_refused_by_tensor() {
    let server = toy().await;
    let check = async |field: &str, request: wire::ModelInferRequest| {
        let error = infer(&server, request).await.expect_err(field);
        assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error}");
        assert!(error.message().starts_with(field), "{field}: {}", error.message());
    };
    let text = |shape, bytes| with(wire::ModelInferRequest::default(), "text_input", Raw("BYTES", shape, bytes));
    check("text_input: is missing", wire::ModelInferRequest::default()).await;
    check("text_input: the contents end", text(&[1], vec![255, 255, 255, 255, 0])).await;
    check("text_input: the shape", text(&[i64::MAX, 2], raw_texts(&["x"]))).await;
    check("text_input: a dimension of -1", text(&[-1], raw_texts(&["x"]))).await;
    check("text_input: element 0 is not UTF-8", text(&[1], vec![1, 0, 0, 0, 0xff])).await;
    check("text_input: 33 are more than 32", text(&[33], raw_texts(&["x"; 33]))).await;
    let number = with(wire::ModelInferRequest::default(), "text_input", Raw("INT32", &[1], vec![0; 4]));
    check("text_input: its datatype", number).await;
    check("max_tokens: 5 bytes", with(request("", "x"), "max_tokens", Raw("INT32", &[1], vec![0; 5]))).await;
    check("max_tokens: is not", max_tokens(request("", "x"), -4)).await;
    check("top_p: 2 is not", with(request("", "x"), "top_p", Raw("FP32", &[1], 2f32.to_le_bytes().to_vec()))).await;
    check("zeal: ", with(request("", "x"), "zeal", Raw("BOOL", &[1], vec![1]))).await;
    let mut lying = request("", "x");
    lying.raw_input_contents.pop();
    check("raw_input_contents: 1 contents for 2 inputs", lying).await;
    let output = InferRequestedOutputTensor { name: "logits".into(), ..Default::default() };
    check("outputs: ", wire::ModelInferRequest { outputs: vec![output], ..request("", "x") }).await;
    check("id: ", request(&"x".repeat(257), "x")).await;
    check("text_input: ", request("", &"x".repeat(100))).await;
    let batch = with(text(&[2], raw_texts(&["x", "y"])), "max_tokens", Raw("INT32", &[3, 1], vec![0; 12]));
    check("max_tokens: 3 rows for 2 prompts", batch).await;
    let batch = with(text(&[2], raw_texts(&["x", "y"])), "stream", Raw("BOOL", &[1], vec![1]));
    check("text_input: a request that streams", batch).await;
    let unknown = wire::ModelInferRequest { model_name: "gpt".into(), ..request("", "x") };
    assert_eq!(infer(&server, unknown).await.expect_err("unknown").code(), Code::NotFound);
    let unknown = wire::ModelInferRequest { model_version: "2".into(), ..request("", "x") };
    assert_eq!(infer(&server, unknown).await.expect_err("unknown").code(), Code::NotFound);
    let mut late = Request::new(request("", "x"));
    late.metadata_mut().insert("grpc-timeout", "soon".parse().expect("ascii"));
    let error = client(&server).model_infer(late).await.expect_err("no timeout");
    assert!(error.message().starts_with("grpc-timeout: "), "{error}");
    server.until_idle().await;
    assert!(infer(&server, request("", "x")).await.is_ok(), "the server is none the worse");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_inferences_stop() {
    let options = Options { limits: Limits::for_context(1_000_000, 4), ..Options::default() };
    let (server, _) = TestServer::toy(options, ToyFaults::default()).await;
    let batch = with(wire::ModelInferRequest::default(), "text_input", Raw("BYTES", &[3], raw_texts(&["x"; 3])));
    let batch = with(batch, "ignore_eos", Raw("BOOL", &[1], vec![1]));
    let mut client = client(&server);
    let call = tokio::spawn(async move { client.model_infer(batch).await });
    let handle = server.engine.handle();
    until("three", || handle.load().running == 3).await;
    call.abort();
    server.until_idle().await;
}

/// A generator good enough to make nonsense.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.below(24);
        (0..length).map(|_| if self.below(2) == 0 { 0 } else { self.below(256) as u8 }).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_answered_or_refused() {
    const NAMES: [&str; 10] = [
        "text_input",
        "max_tokens",
        "stop",
        "seed",
        "temperature",
        "stream",
        "sampling_parameters",
        "",
        "timeout",
        "n",
    ];
    const DATATYPES: [&str; 8] = ["BYTES", "BOOL", "INT32", "UINT64", "FP32", "FP64", "INT8", "?"];
    const SIZES: [i64; 7] = [1, 1, 1, 2, 0, -1, i64::MAX];
    let server = toy().await;
    let mut random = Random(7);
    for _ in 0..300 {
        let mut nonsense = match random.below(2) {
            0 => max_tokens(request("", "x"), 2),
            _ => wire::ModelInferRequest::default(),
        };
        for _ in 0..random.below(4) {
            let (name, datatype) = (NAMES[random.below(NAMES.len())], DATATYPES[random.below(DATATYPES.len())]);
            let shape = (0..random.below(4)).map(|_| SIZES[random.below(SIZES.len())]).collect();
            let mut input =
                InferInputTensor { name: name.into(), datatype: datatype.into(), shape, ..Default::default() };
            match random.below(3) {
                0 => {
                    input.contents = Some(wire::InferTensorContents {
                        bytes_contents: vec![random.bytes()],
                        int_contents: vec![random.below(9) as i32 - 3],
                        fp32_contents: vec![f32::NAN],
                        ..Default::default()
                    })
                }
                1 => nonsense.raw_input_contents.push(random.bytes()),
                _ => nonsense.raw_input_contents.push(raw_texts(&["x"])),
            }
            nonsense.inputs.push(input);
        }
        match infer(&server, nonsense.clone()).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.code(), Code::InvalidArgument, "{error} {nonsense:?}"),
        }
    }
    server.until_idle().await;
    assert!(infer(&server, request("", "x")).await.is_ok(), "the server is none the worse");
}
