//! What is served.

use std::sync::Arc;

use lingqu_cluster::ClusterControl;
use lingqu_engine::EngineHandle;
use lingqu_grammar::{GrammarCompiler, GrammarError};
use lingqu_tokenizer::Tokenizer;
use lingqu_types::{SamplingParams, TokenId};
use tokio::sync::{Semaphore, watch};

use crate::{Metrics, RequestError};

/// A model with its engine, as the wiring hands it over.
pub struct ServedModel {
    pub engine: EngineHandle,
    pub tokenizer: Arc<Tokenizer>,
    pub card: ModelCard,
    /// Sampling of a request that says nothing: the model's generation_config.json over plain sampling.
    pub default_sampling: SamplingParams,
}

/// What clients are told about a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelCard {
    /// What requests call it.
    pub name: String,
    /// `deepseek`, `qwen2` or `llama`.
    pub architecture: String,
    /// Token ids are below this: the rows of the embedding, which may be more than the tokenizer has.
    pub vocabulary_size: u32,
    /// Of weights and configuration.
    pub fingerprint: String,
    /// Formats of the weights; the one that holds most bytes first.
    pub weight_formats: Vec<String>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<TokenId>,
}

/// The compiler of grammars: `None` until it is made.
type Grammars = watch::Receiver<Option<Arc<Result<GrammarCompiler, GrammarError>>>>;

/// A served model, shared by all front ends.
pub struct Served {
    pub model: ServedModel,
    pub metrics: Arc<Metrics>,
    /// Of the workers that hold the routed experts, if workers do.
    pub cluster: Option<ClusterControl>,
    /// Tokenizing and templates are work for a CPU: only so many at once, off the threads that serve connections.
    text_work: Semaphore,
    grammars: Grammars,
}

impl Served {
    /// `text_work_max` prompts are tokenized at once, each on a thread of its own. The compiler of grammars, which
    /// takes seconds for a large vocabulary, is made meanwhile; requests that need it wait for it, others do not.
    pub fn new(model: ServedModel, text_work_max: usize) -> Self {
        let text_work = Semaphore::new(text_work_max.clamp(1, Semaphore::MAX_PERMITS));
        let grammars = make_grammars(&model);
        Self { model, metrics: Arc::default(), cluster: None, text_work, grammars }
    }

    /// The same with its routed experts in a cluster.
    pub fn with_cluster(self, cluster: Option<ClusterControl>) -> Self {
        Self { cluster, ..self }
    }

    /// # Errors
    /// [`RequestError::NotFound`] unless `name` is empty, this model's or one of its adapters'.
    pub fn check_name(&self, name: &str) -> Result<(), RequestError> {
        self.adapter(name).map(|_| ())
    }

    /// The adapter that answers for a model of this name: none for the model's own, or for an empty one.
    ///
    /// # Errors
    /// [`RequestError::NotFound`] for any other name.
    pub fn adapter(&self, name: &str) -> Result<Option<Arc<str>>, RequestError> {
        let served = &self.model.card.name;
        if name.is_empty() || name == served {
            return Ok(None);
        }
        let unknown = || format!("model: this server has no such model; it serves {served:?} and its adapters");
        self.find_adapter(name).map(Some).ok_or_else(|| RequestError::NotFound(unknown()))
    }

    fn find_adapter(&self, name: &str) -> Option<Arc<str>> {
        self.model.engine.adapters().iter().find(|adapter| ***adapter == *name).cloned()
    }

    /// # Errors
    /// [`RequestError::NotFound`], naming `field`, for an adapter that the server was not started with.
    pub fn check_adapter(&self, field: &str, name: &str) -> Result<(), RequestError> {
        let known = self.model.engine.adapters();
        let unknown = || format!("{field}: this server has no such adapter; it has {known:?}");
        self.find_adapter(name).map(|_| ()).ok_or_else(|| RequestError::NotFound(unknown()))
    }

    /// Runs text work on a thread that may block.
    pub async fn off_thread<T: Send + 'static>(
        &self,
        task: &'static str,
        work: impl FnOnce(&Tokenizer) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let tokenizer = Arc::clone(&self.model.tokenizer);
        self.blocking(task, move || work(&tokenizer)).await
    }

    /// The same with the compiler of grammars.
    pub(crate) async fn with_grammars<T: Send + 'static>(
        &self,
        work: impl FnOnce(&GrammarCompiler) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let task = "compiling a grammar";
        // Waited for here, not in a turn of text work: that would keep others from theirs.
        let mut grammars = self.grammars.clone();
        let made = grammars.wait_for(Option::is_some).await.map_err(|e| RequestError::internal_task(task, e))?.clone();
        let compile = move || match made.as_deref() {
            Some(Ok(compiler)) => work(compiler),
            Some(Err(error)) => Err(RequestError::internal_task(task, error)),
            None => unreachable!("it was waited for"),
        };
        self.blocking(task, compile).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        task: &'static str,
        work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let _turn = self.text_work.acquire().await.map_err(|e| RequestError::internal_task(task, e))?;
        let result = tokio::task::spawn_blocking(work).await;
        result.map_err(|e| RequestError::internal_task(task, e))?
    }
}

/// Makes the compiler on a thread of its own. If that cannot be, those who wait for it hear so.
fn make_grammars(model: &ServedModel) -> Grammars {
    let (made, grammars) = watch::channel(None);
    let tokenizer = Arc::clone(&model.tokenizer);
    let (eos, vocabulary) = (model.card.eos_token_ids.clone(), model.card.vocabulary_size as usize);
    let make = move || {
        let compiler = GrammarCompiler::new(tokenizer, &eos, vocabulary);
        made.send_replace(Some(Arc::new(compiler)));
    };
    if let Err(error) = std::thread::Builder::new().name("grammars".into()).spawn(make) {
        tracing::error!(%error, "there is no thread to prepare grammars: requests for forms will fail");
    }
    grammars
}
