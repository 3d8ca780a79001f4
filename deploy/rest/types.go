package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/jhump/protoreflect/v2/grpcreflect"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// reflected is how long what the gateway said of its types is believed: a plug-in may be installed in a newer version.
	reflected = 5 * time.Second
	// unknown is how long it is believed that there is no such type or method: a plug-in may have been installed just now. So long,
	// those who ask for what does not exist cost the gateway nothing.
	unknown = time.Second
)

var bytesValue = (&wrapperspb.BytesValue{}).ProtoReflect().Type()

// types finds messages and methods: those that are compiled in, and those of plug-ins by the gateway's reflection service.
type types struct {
	conn   grpc.ClientConnInterface
	mutex  sync.Mutex
	client *grpcreflect.Client
	since  time.Time
	found  *sync.Map // protoreflect.FullName → protoreflect.MessageType, nil: there is none
}

func newTypes(conn grpc.ClientConnInterface) *types { return &types{conn: conn} }

// reflection is the present conversation with the reflection service, and what it has found; a new one if it is older than that.
func (t *types) reflection(oldest time.Duration) (*grpcreflect.Client, *sync.Map) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if now := time.Now(); t.client == nil || now.Sub(t.since) > oldest {
		// The conversation ends by itself, after those who have just begun to use it.
		life, end := context.WithTimeout(context.Background(), reflected+10*time.Second)
		context.AfterFunc(life, end)
		t.client, t.found = grpcreflect.NewClientAuto(life, t.conn), &sync.Map{}
		t.since = now
	}
	return t.client, t.found
}

func (t *types) FindMessageByName(name protoreflect.FullName) (protoreflect.MessageType, error) {
	if found, err := protoregistry.GlobalTypes.FindMessageByName(name); err == nil {
		return found, nil
	}
	found, err := t.reflectMessage(name, reflected)
	if err != nil { // always NotFound
		found, err = t.reflectMessage(name, unknown)
	}
	return found, err
}

func (t *types) reflectMessage(name protoreflect.FullName, oldest time.Duration) (protoreflect.MessageType, error) {
	client, known := t.reflection(oldest)
	if found, ok := known.Load(name); ok {
		if message, ok := found.(protoreflect.MessageType); ok {
			return message, nil
		}
		return nil, protoregistry.NotFound
	}
	descriptor, err := client.AsResolver().FindDescriptorByName(name)
	message, ok := descriptor.(protoreflect.MessageDescriptor)
	if err != nil || !ok {
		if err == nil || errors.Is(err, protoregistry.NotFound) {
			known.Store(name, false)
		}
		return nil, protoregistry.NotFound
	}
	found := dynamicpb.NewMessageType(message)
	known.Store(name, found)
	return found, nil
}

func (t *types) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	return t.FindMessageByName(protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:]))
}

func (t *types) FindExtensionByName(name protoreflect.FullName) (protoreflect.ExtensionType, error) {
	return protoregistry.GlobalTypes.FindExtensionByName(name)
}

func (t *types) FindExtensionByNumber(message protoreflect.FullName, number protoreflect.FieldNumber) (protoreflect.ExtensionType, error) {
	return protoregistry.GlobalTypes.FindExtensionByNumber(message, number)
}

// method finds a method of any service that the gateway shows. protoregistry.NotFound: there is none.
func (t *types) method(service, name string) (protoreflect.MethodDescriptor, error) {
	found, err := t.reflectMethod(service, name, reflected)
	if errors.Is(err, protoregistry.NotFound) {
		found, err = t.reflectMethod(service, name, unknown)
	}
	return found, err
}

func (t *types) reflectMethod(service, name string, oldest time.Duration) (protoreflect.MethodDescriptor, error) {
	client, _ := t.reflection(oldest)
	descriptor, err := client.AsResolver().FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, err
	}
	found, ok := descriptor.(protoreflect.ServiceDescriptor)
	if !ok || found.Methods().ByName(protoreflect.Name(name)) == nil {
		return nil, protoregistry.NotFound
	}
	return found.Methods().ByName(protoreflect.Name(name)), nil
}

// asBytes is types, but that what it does not find is taken for a BytesValue: JSON then has it as {"@type": …, "value": base64}.
type asBytes struct {
	*types
	urls map[string]bool
	all  bool // every unknown type, and not only these
}

func (a *asBytes) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	if a.urls[url] {
		return bytesValue, nil
	}
	found, err := a.types.FindMessageByURL(url)
	if err != nil && a.all && url != "" {
		a.urls[url] = true
		return bytesValue, nil
	}
	return found, err
}

// toJSON writes a message. An Any that cannot be shown as what it is becomes {"@type": …, "value": base64}.
func (t *types) toJSON(message proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{Resolver: t}.Marshal(message)
	if err == nil {
		return text, nil
	}
	copied := proto.Clone(message)
	resolver := &asBytes{types: t, urls: map[string]bool{}}
	eachAny(copied.ProtoReflect(), t, func(found *anypb.Any) {
		if _, err := (protojson.MarshalOptions{Resolver: resolver}).Marshal(found); err == nil && !resolver.urls[found.TypeUrl] {
			return
		}
		if found.TypeUrl == "" {
			found.TypeUrl = "type.googleapis.com/google.protobuf.BytesValue"
		}
		resolver.urls[found.TypeUrl] = true
		found.Value, _ = proto.Marshal(wrapperspb.Bytes(found.Value)) // bytes always encode
	})
	if text, second := (protojson.MarshalOptions{Resolver: resolver}).Marshal(copied); second == nil {
		return text, nil
	}
	return nil, err
}

// fromJSON reads a message; an Any of a type that nobody knows may be given as toJSON gives it.
func (t *types) fromJSON(text []byte, message proto.Message) error {
	resolver := &asBytes{types: t, urls: map[string]bool{}, all: true}
	if err := (protojson.UnmarshalOptions{Resolver: resolver}).Unmarshal(text, message); err != nil {
		return err
	}
	if len(resolver.urls) > 0 {
		eachAny(message.ProtoReflect(), t, func(found *anypb.Any) {
			if value := (&wrapperspb.BytesValue{}); resolver.urls[found.TypeUrl] && proto.Unmarshal(found.Value, value) == nil {
				found.Value = value.Value
			}
		})
	}
	return nil
}

// eachAny calls back with each Any of a message, those within others first; what the callback changes is kept.
func eachAny(message protoreflect.Message, t *types, visit func(*anypb.Any)) {
	if found, ok := message.Interface().(*anypb.Any); ok {
		if inner, err := t.FindMessageByURL(found.TypeUrl); err == nil && inner != bytesValue {
			value := inner.New()
			if proto.Unmarshal(found.Value, value.Interface()) == nil {
				changed := false
				eachAny(value, t, func(one *anypb.Any) {
					url, before := one.TypeUrl, string(one.Value)
					visit(one)
					changed = changed || url != one.TypeUrl || before != string(one.Value)
				})
				if changed {
					if written, err := proto.Marshal(value.Interface()); err == nil {
						found.Value = written
					}
				}
			}
		}
		visit(found)
		return
	}
	if message.Descriptor().FullName() == "google.protobuf.Any" { // in a message that is not compiled in
		fields := message.Descriptor().Fields()
		url, value := fields.ByName("type_url"), fields.ByName("value")
		found := &anypb.Any{TypeUrl: message.Get(url).String(), Value: message.Get(value).Bytes()}
		eachAny(found.ProtoReflect(), t, visit)
		message.Set(url, protoreflect.ValueOfString(found.TypeUrl))
		message.Set(value, protoreflect.ValueOfBytes(found.Value))
		return
	}
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			if field.MapValue().Message() != nil {
				value.Map().Range(func(_ protoreflect.MapKey, one protoreflect.Value) bool {
					eachAny(one.Message(), t, visit)
					return true
				})
			}
		case field.Message() == nil:
		case field.IsList():
			for index := range value.List().Len() {
				eachAny(value.List().Get(index).Message(), t, visit)
			}
		default:
			eachAny(value.Message(), t, visit)
		}
		return true
	})
}
