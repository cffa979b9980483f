// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Observer is told of every call that was served, for metrics.
type Observer interface {
	// CallDone is called once per call but Probe, with the method's name, such as
	// NodeStageVolume.
	CallDone(method string, code codes.Code, duration time.Duration)
}

// interceptor logs, measures, survives panics, and turns errors into statuses. Where
// beforeController is not nil it comes ahead of the calls of the services of the control
// plane that are about volumes.
func interceptor(log *slog.Logger, observer Observer, beforeController func(context.Context) error) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		method := path.Base(info.FullMethod)
		began := time.Now()
		if beforeController != nil && needsVolumes(path.Dir(info.FullMethod), method) {
			handler = after(beforeController, handler)
		}
		resp, err := guarded(ctx, log.With("method", method), req, handler)
		err = ToStatus(err)
		if method == "Probe" {
			return resp, err
		}
		took := time.Since(began)
		if observer != nil {
			observer.CallDone(method, status.Code(err), took)
		}
		attrs := []slog.Attr{slog.String("method", method), slog.Duration("took", took)}
		if v, ok := req.(interface{ GetVolumeId() string }); ok {
			attrs = append(attrs, slog.String("volume", v.GetVolumeId()))
		}
		if log.Enabled(ctx, slog.LevelDebug) {
			attrs = append(attrs, slog.String("request", protosanitizer.StripSecrets(req).String()))
		}
		if err == nil {
			log.LogAttrs(ctx, slog.LevelDebug, "served", attrs...)
			return resp, nil
		}
		attrs = append(attrs, slog.String("code", status.Code(err).String()), slog.String("error", status.Convert(err).Message()))
		log.LogAttrs(ctx, severity(status.Code(err)), "call failed", attrs...)
		return nil, err
	}
}

// needsVolumes reports whether a call of one of the services of the control plane is about
// volumes, and not only about what the service can do.
func needsVolumes(service, method string) bool {
	return service == "/csi.v1.Controller" && method != "ControllerGetCapabilities" ||
		service == "/csi.v1.GroupController" && method != "GroupControllerGetCapabilities"
}

// after calls the handler once the other function returned no error.
func after(first func(context.Context) error, handler grpc.UnaryHandler) grpc.UnaryHandler {
	return func(ctx context.Context, req any) (any, error) {
		if err := first(ctx); err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
}

// severity of an answer: what the caller did wrong, or will simply ask again, is no
// error of ours.
func severity(code codes.Code) slog.Level {
	switch code {
	case codes.Aborted, codes.Canceled, codes.Unimplemented, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists:
		return slog.LevelInfo
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return slog.LevelError
	}
	return slog.LevelWarn
}

// guarded calls the handler and makes an error of its panic: one broken request
// must not end the volumes of all others.
func guarded(ctx context.Context, log *slog.Logger, req any, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.ErrorContext(ctx, "panic", "value", fmt.Sprint(p), "stack", string(debug.Stack()))
			resp, err = nil, status.Errorf(codes.Internal, "panic: %v", p)
		}
	}()
	return handler(ctx, req)
}
