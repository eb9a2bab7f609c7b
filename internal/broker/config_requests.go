package broker

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// nodeID is the ID of the only broker.
const nodeID = 0

const (
	maxListedPartitions = 2000   // in one response to DescribeTopicPartitions
	maxListedProducers  = 50_000 // in one response to DescribeProducers
	maxDescribedConfigs = 2000   // resources in one DescribeConfigs
)

// brokerConfig is a setting of the broker.
type brokerConfig struct {
	kind     kmsg.ConfigType
	value    *string
	source   kmsg.ConfigSource
	synonyms []synonym
	secret   bool
}

// brokerConfigs are the settings of the broker: the defaults of topics, and others that clients and
// tools read. They are read-only.
var brokerConfigs = func() map[string]brokerConfig {
	configs := make(map[string]brokerConfig)
	for _, c := range topicConfigs {
		if len(c.synonyms) > 0 {
			configs[c.synonyms[0].name] = brokerConfig{kind: c.kind, value: &c.value, source: c.source, synonyms: c.synonyms}
		}
	}
	// set adds a setting. instead is the default of Apache Kafka.
	set := func(name string, kind kmsg.ConfigType, value, instead string) {
		c := brokerConfig{kind: kind, value: &value, source: kmsg.ConfigSourceStaticBrokerConfig}
		c.synonyms = []synonym{{name, value, c.source}, {name, instead, kmsg.ConfigSourceDefaultConfig}}
		if value == instead {
			c.source, c.synonyms = kmsg.ConfigSourceDefaultConfig, c.synonyms[1:]
		}
		configs[name] = c
	}
	set("auto.create.topics.enable", kmsg.ConfigTypeBoolean, "false", "true")
	set("broker.id", kmsg.ConfigTypeInt, strconv.Itoa(nodeID), "-1")
	set("default.replication.factor", kmsg.ConfigTypeInt, "1", "1")
	set("delete.topic.enable", kmsg.ConfigTypeBoolean, "true", "true")
	set("fetch.max.bytes", kmsg.ConfigTypeInt, strconv.Itoa(maxFetchBytes), "57671680")
	set("log.retention.hours", kmsg.ConfigTypeInt, "168", "168")
	set("max.request.partition.size.limit", kmsg.ConfigTypeInt, strconv.Itoa(maxListedPartitions), "2000")
	set("num.partitions", kmsg.ConfigTypeInt, "1", "1")
	set("offsets.retention.minutes", kmsg.ConfigTypeInt, "10080", "10080")
	set("socket.request.max.bytes", kmsg.ConfigTypeInt, strconv.Itoa(maxRequestBytes), "104857600")
	// given adds a setting that has a value here but no default. unset adds one that has neither.
	given := func(name string, kind kmsg.ConfigType, value string) {
		source := kmsg.ConfigSourceStaticBrokerConfig
		configs[name] = brokerConfig{kind: kind, value: &value, source: source, synonyms: []synonym{{name, value, source}}}
	}
	given("node.id", kmsg.ConfigTypeInt, strconv.Itoa(nodeID))
	given("process.roles", kmsg.ConfigTypeList, "broker,controller")
	unset := func(name string, kind kmsg.ConfigType) {
		configs[name] = brokerConfig{kind: kind, source: kmsg.ConfigSourceDefaultConfig}
	}
	unset("broker.rack", kmsg.ConfigTypeString)
	unset("log.retention.minutes", kmsg.ConfigTypeInt)
	unset("log.retention.ms", kmsg.ConfigTypeLong)
	// Apache Kafka does not know the types of the authorizer's settings, so it hides their values.
	configs["allow.everyone.if.no.acl.found"] = brokerConfig{source: kmsg.ConfigSourceStaticBrokerConfig, secret: true,
		synonyms: []synonym{{"allow.everyone.if.no.acl.found", "", kmsg.ConfigSourceStaticBrokerConfig}}}
	return configs
}()

// describeConfigs describes the settings of topics and of the broker.
func (b *Broker) describeConfigs(r *request, req *kmsg.DescribeConfigsRequest) (*kmsg.DescribeConfigsResponse, error) {
	response := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
	unknown := slices.ContainsFunc(req.Resources, func(of kmsg.DescribeConfigsRequestResource) bool {
		return !slices.Contains(configResources, of.ResourceType)
	})
	tooMany := len(req.Resources) > maxDescribedConfigs
	for _, of := range req.Resources {
		described := kmsg.NewDescribeConfigsResponseResource()
		described.ResourceType, described.ResourceName = of.ResourceType, of.ResourceName
		described.ErrorMessage = kmsg.StringPtr("")
		var refused *refusal
		if unknown { // Apache Kafka then fails the whole request
			refused = refusef(kerr.InvalidRequest, "the request contains an unknown resource type")
		} else if tooMany {
			refused = refusef(kerr.PolicyViolation, "a request can describe at most %d resources", maxDescribedConfigs)
		} else if refused = b.mayConfig(r, kmsg.ACLOperationDescribeConfigs, of.ResourceType, of.ResourceName); refused == nil {
			described.Configs, refused = b.configsOf(of.ResourceType, of.ResourceName)
		}
		refused.set(&described.ErrorCode, &described.ErrorMessage)
		described.Configs = slices.DeleteFunc(described.Configs, func(c kmsg.DescribeConfigsResponseResourceConfig) bool {
			return len(of.ConfigNames) > 0 && !slices.Contains(of.ConfigNames, c.Name)
		})
		if !req.IncludeSynonyms {
			for i := range described.Configs {
				described.Configs[i].ConfigSynonyms = nil
			}
		}
		response.Resources = append(response.Resources, described)
	}
	return response, nil
}

// configResources lists the resource types that have settings in Apache Kafka. In this broker only
// topics and brokers have settings.
var configResources = []kmsg.ConfigResourceType{
	kmsg.ConfigResourceTypeTopic,
	kmsg.ConfigResourceTypeBroker,
	kmsg.ConfigResourceTypeBrokerLogger,
	kmsg.ConfigResourceTypeClientMetrics,
	kmsg.ConfigResourceTypeGroupConfig,
}

// mayConfig returns a refusal unless the caller may do op to the settings of a resource.
func (b *Broker) mayConfig(r *request, op kmsg.ACLOperation, kind kmsg.ConfigResourceType, name string) *refusal {
	resource, code := kmsg.ACLResourceTypeCluster, kerr.ClusterAuthorizationFailed
	switch kind {
	case kmsg.ConfigResourceTypeTopic:
		resource, code = kmsg.ACLResourceTypeTopic, kerr.TopicAuthorizationFailed
	case kmsg.ConfigResourceTypeGroupConfig:
		resource, code = kmsg.ACLResourceTypeGroup, kerr.GroupAuthorizationFailed
	default:
		name = clusterName
	}
	if b.acls.allow(r.caller, op, resource, name) {
		return nil
	}
	return refuse(code)
}

func (b *Broker) configsOf(kind kmsg.ConfigResourceType, name string) ([]kmsg.DescribeConfigsResponseResourceConfig, *refusal) {
	switch kind {
	case kmsg.ConfigResourceTypeTopic:
		if err := checkTopicName(name); err != nil {
			return nil, refusef(kerr.InvalidTopicException, "%v", err)
		}
		t := b.topics.named(name)
		if t == nil {
			return nil, &refusal{kerr.UnknownTopicOrPartition.Code, kmsg.StringPtr("")}
		}
		return describeTopicConfigs(t.Configs), nil
	case kmsg.ConfigResourceTypeBroker:
		if name == "" { // the dynamic defaults of all brokers
			return describeBrokerConfigs(kmsg.ConfigSourceDynamicDefaultBrokerConfig), nil
		}
		if refused := checkBrokerName(name); refused != nil {
			return nil, refused
		}
		return describeBrokerConfigs(), nil
	default:
		return nil, refusef(kerr.InvalidRequest, "this broker has no settings of this resource type")
	}
}

// checkBrokerName returns a refusal unless the name is the ID of this broker.
func checkBrokerName(name string) *refusal {
	if id, err := strconv.Atoi(name); err != nil {
		return refusef(kerr.InvalidRequest, "the broker ID %q is not a number", name)
	} else if id != nodeID {
		return refusef(kerr.InvalidRequest, "this is broker %d, not broker %d", nodeID, id)
	}
	return nil
}

func describeTopicConfigs(configs map[string]string) (all []kmsg.DescribeConfigsResponseResourceConfig) {
	for _, name := range slices.Sorted(maps.Keys(topicConfigs)) {
		c := topicConfigs[name]
		value, own := configs[name]
		if !own && c.hidden {
			continue
		}
		described := kmsg.NewDescribeConfigsResponseResourceConfig()
		described.Name, described.ConfigType, described.Value, described.Source = name, c.kind, &c.value, c.source
		if own {
			if shown, err := c.canonical(value); err == nil {
				value = shown
			}
			described.Value, described.Source = &value, kmsg.ConfigSourceDynamicTopicConfig
			described.ConfigSynonyms = describeSynonyms(synonym{name, value, described.Source})
		}
		described.ConfigSynonyms = append(described.ConfigSynonyms, describeSynonyms(c.synonyms...)...)
		all = append(all, described)
	}
	return all
}

// describeBrokerConfigs describes the settings whose values come from the given sources, or all
// settings if no source is given.
func describeBrokerConfigs(sources ...kmsg.ConfigSource) (all []kmsg.DescribeConfigsResponseResourceConfig) {
	for _, name := range slices.Sorted(maps.Keys(brokerConfigs)) {
		c := brokerConfigs[name]
		synonyms := c.synonyms
		if len(sources) > 0 {
			if !slices.Contains(sources, c.source) {
				continue
			}
			synonyms = synonyms[:1]
		}
		described := kmsg.NewDescribeConfigsResponseResourceConfig()
		described.Name, described.ConfigType, described.Value, described.Source = name, c.kind, c.value, c.source
		described.ReadOnly, described.IsSensitive = true, c.secret
		described.ConfigSynonyms = describeSynonyms(synonyms...)
		if c.secret {
			for i := range described.ConfigSynonyms {
				described.ConfigSynonyms[i].Value = nil
			}
		}
		all = append(all, described)
	}
	return all
}

func describeSynonyms(synonyms ...synonym) (all []kmsg.DescribeConfigsResponseResourceConfigConfigSynonym) {
	for _, s := range synonyms {
		described := kmsg.NewDescribeConfigsResponseResourceConfigConfigSynonym()
		described.Name, described.Value, described.Source = s.name, &s.value, s.source
		all = append(all, described)
	}
	return all
}

// configKey names a resource that has settings.
type configKey struct {
	kind kmsg.ConfigResourceType
	name string
}

// change changes one setting.
type change struct {
	name  string
	op    kmsg.IncrementalAlterConfigOp
	value *string
}

// changes holds the changes that a request makes to one resource.
type changes struct {
	configKey
	all     bool // reset all other settings, as AlterConfigs does
	changes []change
}

func (b *Broker) alterConfigs(r *request, req *kmsg.AlterConfigsRequest) (*kmsg.AlterConfigsResponse, error) {
	wanted := make([]changes, len(req.Resources))
	for i, resource := range req.Resources {
		wanted[i] = changes{configKey: configKey{resource.ResourceType, resource.ResourceName}, all: true}
		for _, c := range resource.Configs {
			wanted[i].changes = append(wanted[i].changes, change{c.Name, kmsg.IncrementalAlterConfigOpSet, c.Value})
		}
	}
	response := req.ResponseKind().(*kmsg.AlterConfigsResponse)
	for _, result := range b.changeConfigs(r, wanted, req.ValidateOnly) {
		response.Resources = append(response.Resources, kmsg.AlterConfigsResponseResource(result))
	}
	return response, nil
}

func (b *Broker) incrementalAlterConfigs(r *request, req *kmsg.IncrementalAlterConfigsRequest) (*kmsg.IncrementalAlterConfigsResponse, error) {
	wanted := make([]changes, len(req.Resources))
	for i, resource := range req.Resources {
		wanted[i] = changes{configKey: configKey{resource.ResourceType, resource.ResourceName}}
		for _, c := range resource.Configs {
			wanted[i].changes = append(wanted[i].changes, change{c.Name, c.Op, c.Value})
		}
	}
	response := req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
	response.Resources = b.changeConfigs(r, wanted, req.ValidateOnly)
	return response, nil
}

// changeConfigs changes each resource independently of the others, and returns the result for each.
func (b *Broker) changeConfigs(r *request, wanted []changes, validateOnly bool) []kmsg.IncrementalAlterConfigsResponseResource {
	named := make(map[configKey]int)
	for _, w := range wanted {
		named[w.configKey]++
	}
	results := make([]kmsg.IncrementalAlterConfigsResponseResource, len(wanted))
	for i, w := range wanted {
		refused := refusef(kerr.InvalidRequest, "duplicate resource")
		if named[w.configKey] == 1 {
			refused = b.changeConfig(r, w, validateOnly)
		}
		results[i] = kmsg.NewIncrementalAlterConfigsResponseResource()
		results[i].ResourceType, results[i].ResourceName = w.kind, w.name
		refused.set(&results[i].ErrorCode, &results[i].ErrorMessage)
	}
	return results
}

// changeConfig changes the settings of one resource. The checks are in the same order as in Apache
// Kafka.
func (b *Broker) changeConfig(r *request, w changes, validateOnly bool) *refusal {
	if refused := w.malformed(); refused != nil {
		return refused
	}
	if w.kind == kmsg.ConfigResourceTypeBrokerLogger {
		if !b.acls.allow(r.caller, kmsg.ACLOperationClusterAction, kmsg.ACLResourceTypeCluster, clusterName) {
			return refuseWithoutMessage(kerr.ClusterAuthorizationFailed)
		}
	} else if refused := b.mayConfig(r, kmsg.ACLOperationAlterConfigs, w.kind, w.name); refused != nil {
		return refused
	}
	switch {
	case w.kind == kmsg.ConfigResourceTypeTopic:
		return b.changeTopicConfig(w, validateOnly)
	case w.kind == kmsg.ConfigResourceTypeBroker && len(w.changes) == 0:
		return nil
	case w.kind == kmsg.ConfigResourceTypeBroker:
		return refusef(kerr.InvalidRequest, "the settings of this broker cannot be changed")
	default:
		return refusef(kerr.InvalidRequest, "this broker has no settings of this resource type")
	}
}

// malformed returns a refusal if the changes are invalid for every resource.
func (w changes) malformed() *refusal {
	names := make(map[string]bool)
	for _, c := range w.changes {
		if names[c.name] {
			return refusef(kerr.InvalidRequest, "duplicate setting %q", c.name)
		}
		names[c.name] = true
	}
	for _, c := range w.changes {
		if c.value == nil && c.op != kmsg.IncrementalAlterConfigOpDelete {
			return refusef(kerr.InvalidRequest, "the setting %q has no value", c.name)
		}
	}
	switch w.kind {
	case kmsg.ConfigResourceTypeBroker:
		if w.name != "" {
			return checkBrokerName(w.name)
		}
		return nil
	case kmsg.ConfigResourceTypeBrokerLogger:
		if !w.all {
			return checkBrokerName(w.name)
		}
	case kmsg.ConfigResourceTypeTopic, kmsg.ConfigResourceTypeClientMetrics, kmsg.ConfigResourceTypeGroupConfig:
		return nil
	}
	return refusef(kerr.InvalidRequest, "unknown resource type %d", w.kind)
}

// changeTopicConfig changes the settings of a topic.
func (b *Broker) changeTopicConfig(w changes, validateOnly bool) *refusal {
	t := b.topics.named(w.name)
	var current map[string]string
	if t != nil {
		current = t.Configs
	}
	next, refused := w.apply(current)
	switch {
	case refused != nil:
		return refused
	case t == nil:
		return refusef(kerr.UnknownTopicOrPartition, "topic %q does not exist", w.name)
	case validateOnly || maps.Equal(next, current):
		return nil
	}
	if refused := b.refuseIfDiskFull(); refused != nil {
		return refused
	}
	_, err := b.topics.change(t.ID, func(record *topicRecord) error {
		next, refused := w.apply(record.Configs) // apply again, because another request may have changed the topic since
		if refused != nil {
			return refused
		}
		record.Configs = next
		return nil
	})
	if errors.Is(err, errTopicUnknown) {
		return refusef(kerr.UnknownTopicOrPartition, "topic %q does not exist", w.name)
	}
	return b.changeRefusal("change the settings of a topic", err, "topic", w.name)
}

// changeRefusal returns the refusal for an error of a change of a topic, or nil if err is nil.
func (b *Broker) changeRefusal(what string, err error, attrs ...any) *refusal {
	refused := (*refusal)(nil)
	if err == nil || errors.As(err, &refused) {
		return refused
	}
	return b.refuseUnwritten(what, err, attrs...)
}

// apply returns the settings of a topic after the changes, or a refusal if they are not valid.
func (w changes) apply(current map[string]string) (map[string]string, *refusal) {
	next := make(map[string]string)
	if !w.all {
		maps.Copy(next, current)
	}
	for _, c := range w.changes {
		switch c.op {
		case kmsg.IncrementalAlterConfigOpSet:
			next[c.name] = *c.value
		case kmsg.IncrementalAlterConfigOpDelete:
			delete(next, c.name)
		case kmsg.IncrementalAlterConfigOpAppend, kmsg.IncrementalAlterConfigOpSubtract:
			known, ok := topicConfigs[c.name]
			if !ok || known.kind != kmsg.ConfigTypeList {
				return nil, refusef(kerr.InvalidConfig, "%s is not a list; set it instead", c.name)
			}
			list, ok := next[c.name]
			if !ok {
				list = known.value
			}
			next[c.name] = c.editList(list)
		default:
			return nil, refuseWithoutMessage(kerr.UnknownServerError) // Apache Kafka's answer to an unknown operation
		}
	}
	if w.name == "" {
		return nil, refusef(kerr.InvalidRequest, "the topic name is empty")
	}
	if err := checkTopicName(w.name); err != nil {
		return nil, refusef(kerr.InvalidTopicException, "%v", err)
	}
	if err := checkConfigs(next); err != nil {
		return nil, refusef(kerr.InvalidConfig, "%v", err)
	}
	return next, nil
}

// editList adds the elements in c.value to a list, or removes them, depending on c.op.
func (c change) editList(list string) string {
	elements := slices.DeleteFunc(strings.Split(list, ","), func(s string) bool { return s == "" })
	for _, element := range strings.Split(*c.value, ",") {
		at := slices.Index(elements, element)
		if c.op == kmsg.IncrementalAlterConfigOpSubtract && at >= 0 {
			elements = slices.Delete(elements, at, at+1)
		}
		if c.op == kmsg.IncrementalAlterConfigOpAppend && at < 0 {
			elements = append(elements, element)
		}
	}
	return strings.Join(elements, ",")
}

// listConfigResources lists the resources that have settings.
func (b *Broker) listConfigResources(r *request, req *kmsg.ListConfigResourcesRequest) (*kmsg.ListConfigResourcesResponse, error) {
	response := req.ResponseKind().(*kmsg.ListConfigResourcesResponse)
	if refused := b.mayConfig(r, kmsg.ACLOperationDescribeConfigs, kmsg.ConfigResourceTypeBroker, ""); refused != nil {
		response.ErrorCode = refused.code
		return response, nil
	}
	wants := func(kind kmsg.ConfigResourceType) bool {
		return len(req.ResourceTypes) == 0 || slices.Contains(req.ResourceTypes, int8(kind))
	}
	for _, kind := range req.ResourceTypes {
		if !slices.Contains(configResources, kmsg.ConfigResourceType(kind)) {
			response.ErrorCode = kerr.UnsupportedVersion.Code
			return response, nil
		}
	}
	add := func(kind kmsg.ConfigResourceType, name string) {
		resource := kmsg.NewListConfigResourcesResponseConfigResource()
		resource.Name, resource.Type = name, int8(kind)
		response.ConfigResources = append(response.ConfigResources, resource)
	}
	if req.Version == 0 { // version 0 lists client metrics only
		return response, nil
	}
	if wants(kmsg.ConfigResourceTypeBroker) {
		add(kmsg.ConfigResourceTypeBroker, strconv.Itoa(nodeID))
	}
	if wants(kmsg.ConfigResourceTypeTopic) {
		for _, t := range b.topics.all() {
			add(kmsg.ConfigResourceTypeTopic, t.Name)
		}
	}
	return response, nil
}
